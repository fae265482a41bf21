"""The table of the input's tokens, quantized row by row."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from channelwise.engine.embedding import embedding_table, quantize_embedding
from channelwise.engine.plan import EmbeddingPlan
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid, float_grids, grid_name
from channelwise.numerics.quantizer import fake_quantize, parameters_of
from channelwise.runtime.embedding import QuantizedEmbedding
from tests.checkpoint import tiny
from tests.model.tiny_models import NAMES, tiny_batch, tiny_model, tiny_output

E2M1 = FloatGrid(2, 1)
FOUR_BITS = float_grids(4)
SEARCHED = EmbeddingPlan(FOUR_BITS, search=True)
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


def quantized(model: nn.Module, plan: EmbeddingPlan = SEARCHED) -> QuantizedEmbedding:
    quantize_embedding(model, plan)
    found = model.get_input_embeddings()
    assert isinstance(found, QuantizedEmbedding)
    return found


def errors(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Squared, of each row."""
    return (values.double() - table.double()).square().sum(dim=1)


@pytest.mark.parametrize("plan", [SEARCHED, EmbeddingPlan((E2M1,)), EmbeddingPlan((IntegerGrid(4),))], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "opt_350m"])
def test_every_row_is_on_the_chosen_grid_at_its_own_scale(name: str, plan: EmbeddingPlan) -> None:
    model = tiny_model(name, torch.float32)
    table = embedding_table(model.get_input_embeddings())
    found = quantized(model, plan)
    grid = found.scheme.weights.grid
    assert grid in plan.grids
    if isinstance(grid, FloatGrid):
        positive = grid.positive_values().float()
    else:
        positive = torch.arange(grid.highest + 1, dtype=torch.float32)
    lattice = torch.cat([-positive.flip(0), positive])
    values, scale = found.dequantized_weight(), found.weight_scale
    assert scale.shape == (len(table), 1)
    for row, step in zip(values, scale, strict=True):
        assert bool(torch.isin(row, lattice * step).all())
    nearest = (table[:, :, None] - lattice * scale[:, :, None]).abs().amin(dim=2)
    torch.testing.assert_close((values - table).abs(), nearest, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert"])
def test_no_row_of_a_search_has_more_error_than_min_max_of_its_format(name: str) -> None:
    model = tiny_model(name, torch.float32)
    table = embedding_table(model.get_input_embeddings())
    found = quantized(model)
    grid = found.scheme.weights.grid
    searched = errors(found.dequantized_weight(), table)
    plain = errors(fake_quantize(table, parameters_of(table, grid, ROW), grid, ROW), table)
    assert bool((searched <= plain * (1 + 1e-6)).all())
    # And the format is one choice for the table: no other does better over all rows at its largest numbers.
    for other in FOUR_BITS:
        alone = fake_quantize(table, parameters_of(table, other, ROW), other, ROW)
        assert float(searched.sum()) <= float(errors(alone, table).sum())


def test_without_a_search_rows_reach_their_largest_numbers_in_the_format_with_two_exponent_bits() -> None:
    model = tiny_model("llama", torch.float32)
    table = embedding_table(model.get_input_embeddings())
    found = quantized(model, EmbeddingPlan(FOUR_BITS))
    expected = fake_quantize(table, parameters_of(table, E2M1, ROW), E2M1, ROW)
    assert torch.equal(found.dequantized_weight(), expected)


def test_the_notes_name_format_and_rows() -> None:
    model = tiny_model("llama", torch.float32)
    notes = quantize_embedding(model, SEARCHED)
    assert notes == {"weights": grid_name(model.get_input_embeddings().scheme.weights.grid), "rows": 64.0}


def test_a_scaled_embedding_gives_scaled_rows() -> None:
    """Gemma 3 multiplies its rows by the square root of their length."""
    model = tiny_model("gemma3", torch.float32)
    embedding = model.get_input_embeddings()
    ids = torch.tensor([[1, 5, 63]])
    rows = embedding(ids)
    torch.testing.assert_close(rows, embedding.weight[ids] * 32**0.5)
    found = quantized(model, EmbeddingPlan((FloatGrid(4, 3),)))
    # E4M3 has rounding errors of 2^-4 of a number, except near the scale of its smallest.
    torch.testing.assert_close(found(ids), rows, rtol=2**-4, atol=float(rows.abs().amax()) * 2**-12)


@pytest.mark.parametrize("name", ["tied_llama", "opt", "gpt2", "bert_masked"])
def test_a_tied_head_keeps_its_floating_weight(name: str) -> None:
    model = tiny.MODELS[name]()
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    before = head.weight.detach().clone()
    quantized(model)
    assert type(model.get_output_embeddings()) is nn.Linear
    assert torch.equal(model.get_output_embeddings().weight, before)


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "T5Model", "T5EncoderModel"])
def test_t5_reads_one_quantized_table_everywhere(kind: str) -> None:
    torch.manual_seed(0)
    model = getattr(tf, kind)(tf.T5Config(**T5)).eval()
    found = quantized(model)
    tables = {name: module for name, module in model.named_modules(remove_duplicate=False) if name.endswith("shared")}
    tables |= {name: m for name, m in model.named_modules(remove_duplicate=False) if name.endswith("embed_tokens")}
    assert len(tables) >= (2 if kind == "T5EncoderModel" else 3)
    assert all(module is found for module in tables.values())
    ids = torch.tensor([[1, 5, 7]])
    more = {} if kind == "T5EncoderModel" else {"decoder_input_ids": ids}
    with torch.no_grad():
        assert bool(torch.isfinite(model(input_ids=ids, **more)[0]).all())


def test_one_embedding_under_two_names_is_replaced_under_both() -> None:
    model: Any = tiny_model("bert", torch.float32)
    model.again = model.get_input_embeddings()
    assert quantized(model) is model.again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "opt_350m", "bert", "gemma3"])
def test_the_model_reads_the_quantized_rows_in_its_own_dtype(name: str, dtype: torch.dtype) -> None:
    """The output is that of a model whose rows were rounded by hand."""
    by_hand, model = tiny_model(name, dtype), tiny_model(name, dtype)
    found = quantized(model)
    ids = tiny_batch(model)
    assert found(ids["input_ids"]).dtype == dtype
    rows = found.dequantized_weight().to(dtype)
    by_hand.get_input_embeddings().forward = lambda asked: rows[asked]
    assert torch.equal(tiny_output(model, ids), tiny_output(by_hand, ids))


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_a_model_of_images_is_left_alone(name: str) -> None:
    model = tiny_model(name, torch.float32)
    assert_left_alone(model)


def test_a_model_without_any_embedding_to_name_is_left_alone() -> None:
    sizes = {"depths": [1], "hidden_sizes": [8], "sr_ratios": [1], "patch_sizes": [3], "strides": [2]}
    heads = {"num_attention_heads": [1], "mlp_ratios": [2], "num_encoder_blocks": 1, "decoder_hidden_size": 8}
    assert_left_alone(tf.SegformerForImageClassification(tf.SegformerConfig(**sizes, **heads)))
    assert_left_alone(nn.Linear(3, 3))


def assert_left_alone(model: nn.Module) -> None:
    before = list(model.modules())
    assert quantize_embedding(model, SEARCHED) == {}
    assert list(model.modules()) == before


def test_a_row_of_zeros_stays_one() -> None:
    model: Any = tiny_model("bert", torch.float32)
    model.get_input_embeddings().weight.data[3] = 0.0
    found = quantized(model)
    assert torch.equal(found.dequantized_weight()[3], torch.zeros(32))


@pytest.mark.parametrize("grid", [*FOUR_BITS, IntegerGrid(8)], ids=str)
def test_one_format_is_taken_as_it_is(grid: Grid) -> None:
    assert quantized(tiny_model("llama", torch.float32), EmbeddingPlan((grid,))).scheme.weights.grid == grid


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vit", "deit")])
def test_every_architecture_of_text_gets_a_quantized_table(name: str) -> None:
    model = tiny_model(name, torch.float32)
    quantized(model)
    assert bool(torch.isfinite(tiny_output(model, tiny_batch(model))).all())
