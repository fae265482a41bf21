"""Quantized embeddings come back bit for bit, tied to a head or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn

from channelwise.checkpoint.loader import load_checkpoint
from channelwise.evaluation.sizes import model_sizes
from channelwise.model.batches import vocabulary_size
from channelwise.model.linears import replace_module
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear
from tests.checkpoint import tiny
from tests.checkpoint.tiny import Save

TEXT_MODELS = ["llama", "tied_llama", "opt", "gpt2", "bert", "bert_masked", "mixtral"]
AUTO = {"bert": transformers.AutoModel, "bert_masked": transformers.AutoModelForMaskedLM}
KEPT = ("lm_head", "decoder", "classifier")


def build(name: str, embedding: bool, head: bool, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny.quantize(tiny.MODELS[name]().to(dtype), keep=() if head else KEPT)
    return tiny.quantize_embedding(model) if embedding else model


def assert_comes_back(model: Any, folder: Path, auto: Any) -> None:
    expected = tiny.outputs(model)
    for loaded in (load_checkpoint(folder)[0], auto.from_pretrained(folder)):
        assert torch.equal(tiny.outputs(loaded), expected)
        assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize(("embedding", "head"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_that_is_quantized_comes_back(
    name: str, embedding: bool, head: bool, dtype: torch.dtype, save: Save
) -> None:
    model = build(name, embedding, head, dtype)
    folder = save(model)
    assert_comes_back(model, folder, AUTO.get(name, transformers.AutoModelForCausalLM))
    loaded, _ = load_checkpoint(folder)
    assert isinstance(loaded.get_input_embeddings(), QuantizedEmbedding if embedding else nn.Embedding)
    if name != "bert":
        assert isinstance(loaded.get_output_embeddings(), QuantizedLinear) == head


def test_a_head_that_was_tied_keeps_its_floating_weight(save: Save) -> None:
    model = tiny.tied_llama()
    before = model.lm_head.weight.detach().clone()
    folder = save(tiny.quantize_embedding(tiny.quantize(model)))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("lm_head.weight"), before)
        assert "model.embed_tokens.weight" not in file.keys()  # noqa: SIM118
    loaded, _ = load_checkpoint(folder)
    assert torch.equal(loaded.lm_head.weight, before)


def test_an_embedding_that_was_tied_keeps_its_floating_weight(save: Save) -> None:
    model = tiny.tied_llama()
    before = model.model.embed_tokens.weight.detach().clone()
    loaded, _ = load_checkpoint(save(tiny.quantize(model, keep=())))
    assert torch.equal(loaded.model.embed_tokens.weight, before)


@pytest.mark.parametrize("name", ["tied_llama", "opt", "bert_masked"])
@pytest.mark.parametrize(("embedding", "head"), [(True, True), (False, True), (True, False)])
def test_saving_a_loaded_model_again(name: str, embedding: bool, head: bool, save: Save, tmp_path: Path) -> None:
    model = build(name, embedding, head)
    loaded, _ = load_checkpoint(save(model))
    again, _ = load_checkpoint(save(loaded, "again"))
    assert torch.equal(tiny.outputs(again), tiny.outputs(model))
    loaded.save_pretrained(tmp_path / "by_transformers")
    again, _ = load_checkpoint(tmp_path / "by_transformers")
    assert torch.equal(tiny.outputs(again), tiny.outputs(model))


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bert_masked"])
def test_body_without_head(name: str, save: Save) -> None:
    model = tiny.quantize_embedding(tiny.quantize(tiny.MODELS[name]()))
    body = transformers.AutoModel.from_pretrained(save(model))
    found, expected = body.get_input_embeddings(), model.get_input_embeddings()
    assert isinstance(found, QuantizedEmbedding)
    assert torch.equal(found.weight_packed, expected.weight_packed)
    assert torch.equal(found.weight_scale, expected.weight_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_in_the_dtype_that_is_asked_for_and_scales_in_float32(dtype: torch.dtype, save: Save) -> None:
    model = tiny.quantize_embedding(tiny.quantize(tiny.llama()))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(save(model), dtype=dtype)
    table = loaded.get_input_embeddings()
    assert table(torch.tensor([3])).dtype == dtype
    assert tiny.outputs(loaded).dtype == dtype
    assert torch.equal(table.weight_scale, model.get_input_embeddings().weight_scale)


@pytest.mark.parametrize("grid", [IntegerGrid(8), IntegerGrid(4, symmetric=False), FloatGrid(3, 0)], ids=str)
def test_every_grid(grid: Grid, save: Save) -> None:
    model = tiny.quantize_embedding(tiny.quantize(tiny.llama()), grid)
    loaded, _ = load_checkpoint(save(model))
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))


def test_vocabulary_and_sizes_of_a_quantized_embedding() -> None:
    model = tiny.quantize(tiny.llama())
    before, vocabulary = model_sizes(model), vocabulary_size(model)
    tiny.quantize_embedding(model)
    assert vocabulary_size(model) == vocabulary == 64
    sizes = model_sizes(model)
    # Half a byte for each entry and a float32 scale for each row, instead of 64 · 16 float32 entries.
    assert sizes.model_bytes == before.model_bytes - 64 * 16 * 4 + 64 * (16 // 2 + 4)
    assert sizes.bits_per_weight == before.bits_per_weight


def test_the_padding_index_is_that_of_the_floating_model(save: Save) -> None:
    loaded, _ = load_checkpoint(save(build("bert", embedding=True, head=False)))
    assert loaded.get_input_embeddings().padding_idx == tiny.bert().get_input_embeddings().padding_idx == 0


def test_generates(save: Save) -> None:
    loaded, _ = load_checkpoint(save(build("tied_llama", embedding=True, head=True)))
    tokens = loaded.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokens.shape == (1, 7)


def test_one_table_under_two_names(save: Save) -> None:
    model = tiny.quantize(tiny.bert())
    tiny.quantize_embedding(model)
    replace_module(model, "embeddings.position_embeddings", model.get_input_embeddings())
    model.config.max_position_embeddings = 64
    model.embeddings.position_ids = torch.arange(64).expand(1, -1)
    folder = save(model)
    assert torch.equal(tiny.outputs(load_checkpoint(folder)[0]), tiny.outputs(model))


def test_exponents_come_back(save: Save) -> None:
    model = tiny.exponents_of_llm_fp4(tiny.llama())
    folder = save(model)
    assert_comes_back(model, folder, transformers.AutoModelForCausalLM)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.get_slice("model.layers.0.mlp.up_proj.input_exponent").get_dtype() == "U8"
