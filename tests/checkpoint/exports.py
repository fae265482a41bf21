"""What the tests of exports share: the library, quantized tiny models, and what transformers makes of a directory."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from channelwise import api
from channelwise.errors import InputError
from tests.conftest import IN_CI
from tests.model.tiny_models import tiny_model

__all__ = ["InputError", "ids", "loaded", "need_library", "quantized"]


def need_library() -> None:
    """Skips a module on a machine without compressed-tensors; CI has it."""
    if importlib.util.find_spec("compressed_tensors") is None and not IN_CI:
        pytest.skip("compressed-tensors is not installed", allow_module_level=True)


def ids(samples: int = 8, length: int = 32) -> torch.Tensor:
    """Random token ids of the tiny models' vocabulary."""
    return torch.randint(64, (samples, length), generator=torch.Generator().manual_seed(1))


def quantized(
    name: str, recipe: Any, output: Path, source: Path | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """The tiny model of that name quantized on random tokens, its checkpoint's directory; source: the original's."""
    model: Any = tiny_model(name, dtype)
    if source is not None:
        model.save_pretrained(source)
    is_vit = "image_size" in model.config.to_dict()
    data = torch.randn(8, 3, 16, 16, dtype=dtype) if is_vit else ids()
    api.quantize(model, recipe=recipe, data=data, output=output)
    return output


def loaded(folder: Path) -> Any:
    """The model as transformers loads it; every tensor of the directory, and no other, was needed."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()
