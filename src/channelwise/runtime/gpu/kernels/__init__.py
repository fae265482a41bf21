"""Functions that Triton compiles, or interprets on the CPU: nothing here is called from Python but by a launch."""
