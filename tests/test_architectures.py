"""The main job on every architecture: quantize, write, load, and get the same numbers."""

from pathlib import Path

import pytest
import torch

import channelwise
from channelwise.numerics.grids import FloatGrid
from channelwise.recipe import load_recipe
from channelwise.runtime.embedding import QuantizedEmbedding
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


FLOATING = ("llama", "gemma3", "opt_350m", "gpt2", "falcon", "bert", "vit", "mixtral", "qwen3_moe")
"""Gemma scales its embedding, OPT-350M's has fewer channels than its blocks, GPT-2's head is tied to it."""


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("recipe", ["llm-fp4-w4a4", "minmax-fp4-w4a4"])
def test_models_in_4_bit_floating_point_come_back_bit_by_bit(name: str, recipe: str, tmp_path: Path) -> None:
    model = tiny_model(name, torch.float32)
    data = PIXELS if name == "vit" else IDS
    with torch.no_grad():
        exact = model(data)[0]
        result = channelwise.quantize(model, recipe=recipe, data=data, output=tmp_path / name)
        quantized = result.model(data)[0]
        loaded, _ = channelwise.load(tmp_path / name)
        again = loaded(data)[0]
    assert torch.equal(quantized, again)
    assert not torch.equal(quantized, exact)
    layers = {n: module for n, module in loaded.named_modules() if isinstance(module, QuantizedLinear)}
    assert {linear for site in result.record.sites for linear in site.linears} == set(layers)
    assert all(isinstance(layer.scheme.weights.grid, FloatGrid) for layer in layers.values())
    assert {layer.scheme.weights.grid.bits for layer in layers.values()} == {4}
    assert ("lm_head" in layers) == hasattr(loaded, "lm_head")
    assert isinstance(loaded.get_input_embeddings(), QuantizedEmbedding) == (name != "vit")
    searched = [notes for site in result.record.sites for notes in site.layers.values()]
    assert all(notes["loss"] <= notes["loss_min_max"] for notes in searched)
    assert bool(searched) == (recipe == "llm-fp4-w4a4")


@pytest.mark.parametrize("name", FLOATING)
def test_weights_in_groups_of_either_direction_come_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    """GPTQ-ada at three bits; 12 divides neither side of most layers, so last groups are ragged."""
    model = tiny_model(name, torch.float32)
    recipe = load_recipe("gptq-ada-w3g128", ["weights.group_size=12"])
    data = PIXELS if name == "vit" else IDS
    with torch.no_grad():
        result = channelwise.quantize(model, recipe=recipe, data=data, output=tmp_path / name)
        quantized = result.model(data)[0]
        loaded, _ = channelwise.load(tmp_path / name)
        again = loaded(data)[0]
    assert torch.equal(quantized, again)
    assert torch.isfinite(again).all()
    layers = [module for module in loaded.modules() if isinstance(module, QuantizedLinear)]
    assert {layer.scheme.weights.grid.bits for layer in layers} == {3}
    notes = [notes for site in result.record.sites for notes in site.layers.values()]
    assert notes and all((n["direction"] == "oc") == (n["loss_oc"] <= n["loss_ic"]) for n in notes)
