"""Loading a model and its tokenizer, with everything that could be wrong with them found and told in one line."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from channelwise.errors import InputError
from channelwise.model.blocks import find_blocks
from channelwise.model.sources import model_directory, one_line, read_json
from channelwise.model.tokenizers import check_tokenizer, load_tokenizer

NAMED = 3
"""How many of many missing tensors an error names."""
LOADING = {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
"""How from_pretrained is called. Other shapes are not ignored: they are in the loading information, by name."""
EXTREMES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_model(
    path_or_name: str | Path, dtype: str | torch.dtype = "auto", *, allow_quantized: bool = False
) -> tuple[nn.Module, Any]:
    """A transformers model in evaluation mode, without gradients on the CPU; and its tokenizer or None.

    path_or_name: a model directory, a hub name, or "demo", the bundled model. dtype: as in transformers, "auto" is the
    one the weights were saved in. Raises InputError if it is no model, is damaged or incomplete, holds numbers that are
    not finite, has nothing to quantize, is already quantized (unless allowed), or has a tokenizer of another model.
    """
    folder = model_directory(str(path_or_name))
    config = read_json(folder / "config.json")
    quantized = config.get("quantization_config") is not None
    if quantized and not allow_quantized:
        raise InputError(f"{path_or_name} is already quantized: give the original model")
    model_class = model_class_of(config, folder)
    check_files(folder)
    with quiet():
        model = built(model_class, folder, partial(model_class.from_pretrained, folder, dtype=dtype, **LOADING))
        tokenizer = load_tokenizer(folder)
    check_finite(model.named_parameters(), folder)
    if not quantized:
        find_blocks(model)
    if tokenizer is not None:
        check_tokenizer(model, tokenizer, folder)
    return model, tokenizer


def model_class_of(config: dict[str, Any], folder: Path) -> Any:
    """The transformers class that config.json names. Raises InputError if it names none, or none that is known."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise InputError(
            f"{folder / 'config.json'} has no architectures: add the name of the model's transformers class"
        )
    model_class = getattr(transformers, str(names[0]), None)
    if not hasattr(model_class, "from_pretrained"):
        raise InputError(
            f"{folder / 'config.json'}: transformers {transformers.__version__} has no class {names[0]}; "
            "code from model repositories is not run"
        )
    return model_class


def check_files(folder: Path) -> None:
    """Raises InputError unless every weight file is there and whole."""
    index = folder / "model.safetensors.index.json"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if index.is_file():
        names = sorted({*names, *read_json(index).get("weight_map", {}).values()})
    if not names and not any(folder.glob("pytorch_model*.bin")):
        raise InputError(f"{folder} holds no weights: there is no model.safetensors; fetch the model again")
    for name in names:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, but {index.name} needs it: fetch the model again")
        check_weight_file(path, "fetch it again")


def check_weight_file(path: Path, remedy: str) -> None:
    """Raises InputError, naming the safetensors file and what to do, if it is cut short or damaged."""
    try:
        # Opened for torch, the file would be mapped whole and private, which the system refuses beyond its memory.
        with safe_open(path, framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is cut short or damaged ({one_line(error)}): {remedy}") from error


def built(model_class: Any, folder: Path, build: Callable[..., tuple[Any, dict[str, Any]]]) -> nn.Module:
    """The model that `build` makes by from_pretrained with LOADING, in evaluation mode and without gradients.

    An encoder whose files hold no pooler gets none.
    Raises InputError if it cannot be made, or if the files lack tensors of it or have them in other shapes.
    """
    try:
        model, info = build()
        if lacks_a_pooler(model_class, info["missing_keys"]):
            model, info = build(add_pooling_layer=False)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
        raise InputError(f"{folder} cannot be loaded as {model_class.__name__}: {one_line(error)}") from error
    # transformers would go on with random numbers in these.
    for problem, keys in (("lacks", info["missing_keys"]), ("has other shapes for", info["mismatched_keys"])):
        if keys:
            named = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in keys)
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            raise InputError(
                f"{folder} {problem} {', '.join(named[:NAMED])}{more}: it is no whole {model_class.__name__}"
            )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def lacks_a_pooler(model_class: Any, missing: Iterable[str]) -> bool:
    """Whether all that the files lack is the pooler of an encoder, which the class can do without."""
    names = list(missing)
    optional = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return bool(names) and optional and all("pooler" in name.split(".") for name in names)


def check_finite(parameters: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Raises InputError, naming the first, if one of a model's named parameters holds numbers that are not finite."""
    for name, tensor in parameters:
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise InputError(f"{folder}: {name} holds numbers that are not finite: the weights are damaged")


def _is_finite(tensor: torch.Tensor) -> bool:
    """One pass without temporary copies where torch has extremes of the dtype; they are NaN if one value is."""
    if tensor.dtype in EXTREMES and tensor.numel():
        tensor = torch.stack(torch.aminmax(tensor))
    return bool(torch.isfinite(tensor).all())


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing and shows no progress bars; as before afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
