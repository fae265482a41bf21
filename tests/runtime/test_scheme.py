"""Schemes survive JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.runtime.scheme import (
    InputScheme,
    LinearScheme,
    WeightScheme,
    grid_from_dict,
    grid_to_dict,
    scheme_from_dict,
    scheme_to_dict,
)

integer_grids = st.builds(IntegerGrid, st.integers(2, 8), st.booleans())
float_grids = st.integers(2, 8).flatmap(
    lambda bits: st.integers(1, bits - 1).map(lambda exponent: FloatGrid(exponent, bits - 1 - exponent))
)
granularities = st.sampled_from(["tensor", "row", "column"]).map(Granularity) | st.builds(
    Granularity, st.sampled_from(["row_group", "column_group"]), st.integers(1, 1024)
)
grids = integer_grids | float_grids
input_schemes = st.builds(InputScheme, grids, st.sampled_from(["static", "token"]))
shiftable = st.builds(InputScheme, st.builds(IntegerGrid, st.integers(2, 8)) | float_grids, st.just("static"))


def schemes_with(inputs: st.SearchStrategy, exponents: bool) -> st.SearchStrategy:
    return st.builds(
        LinearScheme,
        in_features=st.integers(1, 2**16),
        out_features=st.integers(1, 2**16),
        weights=st.builds(WeightScheme, grids, granularities),
        inputs=inputs,
        bias=st.booleans(),
        shift=st.booleans(),
        scale=st.booleans(),
        exponents=st.just(exponents),
    )


schemes = schemes_with(st.none() | input_schemes, False) | schemes_with(shiftable, True)
EXAMPLE = LinearScheme(
    8, 4, WeightScheme(FloatGrid(2, 1), Granularity("row_group", 4)), InputScheme(IntegerGrid(8, False), "static")
)


@given(schemes)
def test_a_scheme_survives_json(scheme):
    assert scheme_from_dict(json.loads(json.dumps(scheme_to_dict(scheme)))) == scheme


@given(integer_grids | float_grids)
def test_a_grid_survives_json(grid):
    assert grid_from_dict(json.loads(json.dumps(grid_to_dict(grid)))) == grid


def test_the_form_that_checkpoints_hold():
    # A change of this is a change of the checkpoint format.
    assert scheme_to_dict(EXAMPLE) == {
        "in_features": 8,
        "out_features": 4,
        "weights": {
            "grid": {"float": {"exponent_bits": 2, "mantissa_bits": 1}},
            "granularity": {"kind": "row_group", "group_size": 4},
        },
        "inputs": {"grid": {"integer": {"bits": 8, "symmetric": False}}, "kind": "static"},
        "bias": False,
        "shift": False,
        "scale": False,
        "exponents": False,
    }


def test_without_the_key_there_are_no_exponents():
    # Format version 1 had none.
    data = scheme_to_dict(EXAMPLE)
    del data["exponents"]
    assert scheme_from_dict(data) == EXAMPLE


@pytest.mark.parametrize(
    "inputs",
    [None, InputScheme(FloatGrid(2, 1), "token"), InputScheme(IntegerGrid(8, symmetric=False), "static")],
)
def test_exponents_need_a_static_input_without_zero_point(inputs):
    with pytest.raises(ValueError, match="static input on a symmetric grid"):
        LinearScheme(8, 4, EXAMPLE.weights, inputs, exponents=True)


@pytest.mark.parametrize("grid", [{}, {"posit": {}}, {"integer": {"bits": 4}, "float": {}}])
def test_an_unknown_grid_is_refused(grid):
    with pytest.raises(ValueError, match="unknown grid"):
        grid_from_dict(grid)


def test_a_width_that_no_grid_has_is_refused():
    with pytest.raises(ValueError, match="2 to 8"):
        grid_from_dict({"integer": {"bits": 16, "symmetric": True}})


@pytest.mark.parametrize("key", ["in_features", "weights", "inputs", "bias", "shift", "scale"])
def test_a_missing_key_is_refused(key):
    data = scheme_to_dict(EXAMPLE)
    del data[key]
    with pytest.raises(KeyError, match=key):
        scheme_from_dict(data)
