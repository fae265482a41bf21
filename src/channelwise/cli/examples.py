"""Examples of each verb, shown below its --help. Those of the model `demo` run as they stand."""

_COMMANDS: dict[str, tuple[str, ...]] = {
    "demo": ("channelwise demo", "channelwise demo --samples 8 --report demo.html"),
    "recipes": ("channelwise recipes", "channelwise recipes outliertune-w6a6 > mine.yaml"),
    "inspect": (
        "channelwise inspect demo --data demo",
        "channelwise inspect my-model --data calibration.txt --report outliers.html",
    ),
    "quantize": (
        "channelwise quantize demo --recipe outliertune-w6a6 --data demo \\\n    --output demo-w6a6",
        "channelwise quantize my-model --recipe mine.yaml --data calibration.txt \\\n    --output my-model-mine",
    ),
    "evaluate": (
        "channelwise evaluate demo --perplexity demo",
        "channelwise evaluate my-model-w6a6 --tasks piqa,arc_easy --limit 100",
    ),
    "compare": (
        "channelwise compare demo --recipes rtn-w6a6,outliertune-w6a6 \\\n    --data demo --perplexity demo",
        "channelwise compare my-model --recipes all --data calibration.txt \\\n"
        "    --perplexity test.txt --report recipes.html",
    ),
    "generate": ('channelwise generate demo --prompt "def read_lines(path):"',),
    "export": (
        "channelwise export my-model-w8a8 --format compressed-tensors \\\n    --output my-model-exported",
        "channelwise export my-model-w8a8 --format fp --source my-model \\\n    --output my-model-folded",
    ),
    "serve": ("channelwise serve my-model-w6a6 --port 8000",),
}


def _epilog(commands: tuple[str, ...]) -> str:
    """The commands under a heading; click leaves a paragraph that begins with a backspace as it is."""
    lines = "\n".join(commands).split("\n")
    return "\n".join(["\b", "Examples:" if len(commands) > 1 else "Example:", *(f"  {line}" for line in lines)])


EXAMPLES: dict[str, str] = {verb: _epilog(commands) for verb, commands in _COMMANDS.items()}
"""By verb, as typer takes it for an epilog."""
