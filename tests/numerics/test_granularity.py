"""Which entries share a scale, and methods.md §4: Q_ic(W) = Q_oc(Wᵀ)ᵀ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import COLUMN, ROW, Granularity, expand, parameter_shape, row_slices, value_range
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import decode, encode, fake_quantize, joined, parameters_of
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


@given(st.integers(0, 40), granularities, st.integers(1, 50))
def test_parts_of_the_rows_are_all_rows_in_turn_and_cut_no_group_apart(rows, granularity, size):
    parts = row_slices(rows, granularity, size)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert len({part.stop - part.start for part in parts[:-1]}) <= 1
    if granularity.kind == "column_group":
        assert all(part.start % granularity.group_size == 0 for part in parts)
        assert all(part.stop - part.start <= max(size, granularity.group_size) for part in parts)
    else:
        assert all(part.stop - part.start <= size for part in parts)


@given(matrices(), all_grids, granularities, st.integers(1, 9))
def test_a_part_of_the_rows_is_quantized_as_in_the_whole(w, grid, granularity, size):
    parameters = parameters_of(w, grid, granularity)
    codes, values = encode(w, parameters, grid, granularity), fake_quantize(w, parameters, grid, granularity)
    for rows in row_slices(len(w), granularity, size):
        own = parameters.of_rows(rows, granularity)
        assert torch.equal(encode(w[rows], own, grid, granularity), codes[rows])
        assert torch.equal(decode(codes[rows], own, grid, granularity), values[rows])


@given(matrices(), all_grids, granularities, st.integers(1, 20))
def test_how_many_entries_are_handled_at_a_time_does_not_matter(w, grid, granularity, entries):
    parameters = parameters_of(w, grid, granularity)
    whole = [encode(w, parameters, grid, granularity), fake_quantize(w, parameters, grid, granularity)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("channelwise.numerics.quantizer.CACHED", entries)
        assert torch.equal(encode(w, parameters, grid, granularity), whole[0])
        assert torch.equal(decode(whole[0], parameters, grid, granularity), whole[1])
        assert torch.equal(fake_quantize(w, parameters, grid, granularity), whole[1])


@given(matrices(), asymmetric_grids, st.integers(1, 9), st.integers(1, 9))
def test_the_parameters_of_parts_are_joined_to_those_of_the_whole(w, grid, group, size):
    granularity = Granularity("column_group", group)
    whole = parameters_of(w, grid, granularity)
    parts = [whole.of_rows(rows, granularity) for rows in row_slices(len(w), granularity, size)]
    assert torch.equal(joined(parts, dim=0).scale, whole.scale)
    assert torch.equal(joined(parts, dim=0).zero_point, whole.zero_point)
