"""`channelwise generate`: let a model go on from a prompt."""

from dataclasses import asdict
from typing import Annotated

import typer

from channelwise.cli.options import AsJson, Debug, Device, Model

Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to go on from.", show_default=False)]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="The most tokens to add.", min=1)]


def generate(
    model: Model,
    prompt: Prompt,
    max_tokens: MaxTokens = 64,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Let a model, quantized or not, go on from a prompt.

    It always takes the likeliest token, so the answer is the same every time.
    """
    from channelwise.cli.output import print_json, quiet_libraries

    quiet_libraries()
    from channelwise import api

    if as_json:
        print_json(asdict(api.generate(model, prompt, max_tokens=max_tokens, device=device)))
        return
    api.generate(model, prompt, max_tokens=max_tokens, device=device, on_text=_print_piece)
    print()


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)
