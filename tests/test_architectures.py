"""The main job on every architecture: quantize, write, load, and get the same numbers."""

from pathlib import Path

import pytest
import torch

import channelwise
from channelwise.runtime.linear import QuantizedLinear
from tests.model.tiny_models import NAMES, tiny_model

IDS = torch.randint(64, (6, 12), generator=torch.Generator().manual_seed(1))
PIXELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_quantized_written_and_loaded_models_give_bit_identical_outputs(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, torch.float32)
    data = PIXELS if name in ("vit", "deit") else IDS
    with torch.no_grad():
        exact = model(data)[0]
        result = channelwise.quantize(model, recipe="outliertune-w8a8", data=data, output=tmp_path / name)
        quantized = result.model(data)[0]
        loaded, _ = channelwise.load(tmp_path / name)
        again = loaded(data)[0]
    layers = [module for module in loaded.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) >= 8
    assert len({linear for site in result.record.sites for linear in site.linears}) == len(layers)
    assert torch.equal(quantized, again)
    # Weights drawn at 0.2 make such models far more sensitive than trained ones; chance would give 1.4.
    assert float((quantized - exact).norm() / exact.norm()) < 0.2
