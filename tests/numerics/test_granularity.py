"""Which entries share a scale, and methods.md §4: Q_ic(W) = Q_oc(Wᵀ)ᵀ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import COLUMN, ROW, Granularity, expand, parameter_shape, value_range
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import encode, fake_quantize, parameters_of
from tests.numerics.cases import all_grids, asymmetric_grids, gaussian, granularities, matrices


@given(matrices(), all_grids, st.integers(1, 9))
def test_per_ic_is_per_oc_of_the_transpose(w, grid, size):
    # methods.md §4; exactly, last groups that are not full included.
    oc, ic = Granularity("row_group", size), Granularity("column_group", size)
    along_columns, along_rows = parameters_of(w, grid, ic), parameters_of(w.t(), grid, oc)
    assert torch.equal(encode(w, along_columns, grid, ic), encode(w.t(), along_rows, grid, oc).t())
    assert torch.equal(fake_quantize(w, along_columns, grid, ic), fake_quantize(w.t(), along_rows, grid, oc).t())


@given(matrices(), granularities)
def test_parameters_have_the_announced_shape_and_reach_every_entry(x, granularity):
    low, high = value_range(x, granularity)
    assert low.shape == high.shape == parameter_shape(tuple(x.shape), granularity)
    assert torch.broadcast_to(expand(low, tuple(x.shape), granularity), x.shape).le(x).all()
    assert torch.broadcast_to(expand(high, tuple(x.shape), granularity), x.shape).ge(x).all()


@given(matrices(), granularities)
def test_each_range_is_attained_in_its_group(x, granularity):
    low, high = value_range(x, granularity)
    place = torch.arange(low.numel()).view(low.shape).float()
    group = torch.broadcast_to(expand(place, tuple(x.shape), granularity), x.shape)
    for index in range(low.numel()):
        members = x[group == index]
        assert low.flatten()[index] == members.min()
        assert high.flatten()[index] == members.max()


def test_a_last_group_that_is_not_full_has_the_range_of_its_own_entries():
    x = torch.tensor([[1.0, 2.0, 3.0, -4.0, -5.0]])
    low, high = value_range(x, Granularity("row_group", 3))
    assert low.tolist() == [[1.0, -5.0]]
    assert high.tolist() == [[3.0, -4.0]]


def test_groups_of_a_whole_row_are_rows_and_of_a_whole_column_columns():
    w = gaussian(6, 10, seed=0)
    for whole, group in [(ROW, Granularity("row_group", 10)), (COLUMN, Granularity("column_group", 6))]:
        for ours, theirs in zip(value_range(w, whole), value_range(w, group), strict=True):
            assert torch.equal(ours, theirs)


@given(matrices(largest=2.0**20), asymmetric_grids, st.integers(1, 9))
def test_zero_is_kept_exactly_in_every_asymmetric_group(w, grid, size):
    # methods.md §4: "0 inside the range".
    granularity = Granularity("row_group", size)
    parameters = parameters_of(w, grid, granularity)
    assert torch.equal(fake_quantize(torch.zeros_like(w), parameters, grid, granularity), torch.zeros_like(w))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_group_of_one_sign_does_not_collapse(sign):
    # methods.md §4: AdaDim's released code, without 0 in the range, loses such a group.
    w = sign * torch.tensor([[10.0, 10.1, 10.2, 10.3]])
    grid, granularity = IntegerGrid(3, symmetric=False), Granularity("row_group", 4)
    parameters = parameters_of(w, grid, granularity)
    assert parameters.zero_point.item() == (0 if sign > 0 else 7)
    error = (fake_quantize(w, parameters, grid, granularity) - w).abs().max()
    assert error <= parameters.scale.item() / 2


@pytest.mark.parametrize("kind", ["tensor", "row", "column"])
def test_only_groups_take_a_group_size(kind):
    with pytest.raises(ValueError, match="takes no group size"):
        Granularity(kind, 4)


@pytest.mark.parametrize("size", [None, 0, -1])
def test_groups_need_a_group_size(size):
    with pytest.raises(ValueError, match="at least 1"):
        Granularity("row_group", size)
