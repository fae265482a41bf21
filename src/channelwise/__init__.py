"""Channelwise: post-training quantization of transformers whose activations have outlier channels.

    import channelwise
    channelwise.quantize("my-model", recipe="outliertune-w6a6", data="text.txt", output="my-model-w6a6")
    model, tokenizer = channelwise.load("my-model-w6a6")

Importing the package lets transformers load its checkpoints too (`AutoModelForCausalLM.from_pretrained`). The program
`channelwise` leaves that to the verbs that load a model, so that `channelwise --help` need not import torch.
"""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelwise.api import (
        QuantizeResult,
        compare,
        evaluate,
        export,
        forecast,
        generate,
        inspect,
        load,
        profile,
        quantize,
    )
    from channelwise.errors import InputError, NumericalError
    from channelwise.recipe import Recipe

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "NumericalError",
    "QuantizeResult",
    "Recipe",
    "compare",
    "evaluate",
    "export",
    "forecast",
    "generate",
    "inspect",
    "load",
    "profile",
    "quantize",
]

_HOMES = {"InputError": "errors", "NumericalError": "errors", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    """The public names, imported at their first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    """For help() and completion, without importing anything."""
    return [*__all__, "__version__"]


def _is_own_program() -> bool:
    """Whether this process is the console script, or `python -m channelwise`: argv is not final while -m starts."""
    script = Path(sys.argv[0]).name if getattr(sys, "argv", None) else ""
    return script in ("channelwise", "channelwise.exe") or ("-m", "channelwise") in pairwise(sys.orig_argv)


if not _is_own_program():
    import_module(f"{__name__}.checkpoint.plugin").register()
