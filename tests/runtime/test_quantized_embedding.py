"""A quantized embedding gives the decoded rows of its table."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.scheme import EmbeddingScheme, WeightScheme, embedding_from_dict, embedding_to_dict

E2M1 = FloatGrid(2, 1)
GRANULARITIES = [ROW, Granularity("row_group", 5)]
grids = st.builds(IntegerGrid, st.integers(2, 8), st.booleans()) | st.sampled_from([E2M1, FloatGrid(3, 0)])


def build(rows: int, columns: int, grid: Grid = E2M1, granularity: Granularity = ROW, dtype: str = "float32"):
    table = torch.randn(rows, columns) + 0.3
    parameters = parameters_of(table, grid, granularity)
    scheme = EmbeddingScheme(rows, columns, WeightScheme(grid, granularity), dtype)
    return QuantizedEmbedding.from_parts(scheme, encode(table, parameters, grid, granularity), parameters)


@settings(max_examples=60, deadline=None)
@given(
    grid=grids,
    granularity=st.sampled_from(GRANULARITIES),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 23)),
    shape=st.sampled_from([(), (0,), (3,), (2, 4), (2, 0, 3)]),
    seed=st.integers(0, 2**20),
)
def test_rows_are_those_of_the_decoded_table(grid, granularity, sizes, shape, seed):
    torch.manual_seed(seed)
    embedding = build(*sizes, grid, granularity)
    ids = torch.randint(0, sizes[0], shape)
    assert torch.equal(embedding(ids), embedding.dequantized_weight()[ids])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_come_in_the_dtype_of_the_scheme(dtype):
    embedding = build(7, 12, dtype=dtype)
    ids = torch.tensor([[6, 0]], dtype=torch.int32)
    assert torch.equal(embedding(ids), embedding.dequantized_weight()[ids].to(getattr(torch, dtype)))


def test_a_conversion_changes_the_output_alone():
    embedding = build(7, 12)
    scale, ids = embedding.weight_scale.clone(), torch.arange(7)
    expected = embedding(ids)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        model = torch.nn.Sequential(embedding).to(dtype)
        assert torch.equal(model(ids), expected.to(dtype))
        assert model[0].weight.dtype == dtype
        assert torch.equal(embedding.weight_scale, scale)
        assert embedding.weight_scale.dtype == torch.float32


@pytest.mark.parametrize("wrong", [7, -1])
def test_ids_beyond_the_table_are_refused(wrong):
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        build(7, 12)(torch.tensor([wrong]))


def test_copies_and_the_meta_device():
    embedding, ids = build(7, 12), torch.tensor([2, 5])
    assert torch.equal(copy.deepcopy(embedding)(ids), embedding(ids))
    empty = QuantizedEmbedding(embedding.scheme, device="meta")
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    empty.load_state_dict(embedding.state_dict(), assign=True)
    assert torch.equal(empty(ids), embedding(ids))


def test_what_models_ask_an_embedding_for():
    embedding = build(7, 12, dtype="bfloat16")
    assert (embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx) == (7, 12, None)
    weight = embedding.weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((7, 12), torch.bfloat16, "cpu")
    assert weight.untyped_storage().nbytes() == 2
    # Computing with it cannot pass unnoticed.
    assert bool((torch.ones(1, 12, dtype=torch.bfloat16) @ weight.t()).isnan().all())


@pytest.mark.parametrize(("grid", "zero_points"), [(E2M1, 0), (IntegerGrid(4, symmetric=False), 1)])
def test_size(grid, zero_points):
    assert build(7, 12, grid).weight_bytes() == 7 * (12 * 4 // 8 + 4 + zero_points)


@given(
    st.builds(
        EmbeddingScheme,
        rows=st.integers(1, 2**17),
        columns=st.integers(1, 2**13),
        weights=st.builds(WeightScheme, grids, st.sampled_from(GRANULARITIES)),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    )
)
def test_a_scheme_survives_json(scheme):
    assert embedding_from_dict(json.loads(json.dumps(embedding_to_dict(scheme)))) == scheme


def test_schemes_that_are_refused():
    for granularity in (TENSOR, COLUMN, Granularity("column_group", 4)):
        with pytest.raises(ValueError, match="scales per row"):
            EmbeddingScheme(4, 4, WeightScheme(E2M1, granularity), "float32")
    with pytest.raises(ValueError, match="int8"):
        EmbeddingScheme(4, 4, WeightScheme(E2M1, ROW), "int8")
    scheme = EmbeddingScheme(4, 4, WeightScheme(IntegerGrid(4, symmetric=False), ROW), "float32")
    with pytest.raises(ValueError, match="weight_zero_point is missing"):
        QuantizedEmbedding.from_parts(scheme, torch.zeros(4, 4).short(), parameters_of(torch.ones(4, 4), E2M1, ROW))
