"""`python -m channelwise`: the command line."""

from channelwise.cli import main

if __name__ == "__main__":
    main()
