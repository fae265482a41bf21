"""Where the blocks are."""

import pytest
import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.blocks import find_blocks, hidden_of, with_hidden
from channelwise.model.experts import unfuse_experts
from tests.model.tiny_models import NAMES, tiny_model


@pytest.mark.parametrize("name", NAMES)
def test_every_architectures_two_blocks_are_found(name: str) -> None:
    model = tiny_model(name, torch.float32)
    blocks = find_blocks(model)
    assert blocks.names == (f"{blocks.prefix}.0", f"{blocks.prefix}.1")
    assert len({type(block) for block in blocks.modules(model)}) == 1


def test_a_list_of_experts_inside_a_block_is_not_taken_for_the_blocks() -> None:
    model = tiny_model("mixtral", torch.float32)
    unfuse_experts(model)
    assert find_blocks(model).prefix == "model.layers"


def test_the_list_with_the_most_linear_parameters_is_taken() -> None:
    model = nn.Module()
    model.many = nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])
    model.large = nn.ModuleList([nn.Linear(20, 20) for _ in range(2)])
    model.mixed = nn.ModuleList([nn.Linear(90, 90), nn.ReLU()])
    assert find_blocks(model).prefix == "large"


def test_a_model_without_blocks_or_linear_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no list of like blocks"):
        find_blocks(nn.Linear(2, 2))
    model = nn.Module()
    model.layers = nn.ModuleList([nn.LayerNorm(2)])
    with pytest.raises(InputError, match="no linear layers"):
        find_blocks(model)


def test_the_hidden_state_of_an_output_can_be_replaced_in_any_structure() -> None:
    old, new = torch.zeros(2), torch.ones(2)
    assert with_hidden(old, new) is new
    assert with_hidden((old, None), new) == (new, None)
    for output in (old, (old, None), [old]):
        assert hidden_of(output) is old
        assert hidden_of(with_hidden(output, new)) is new
    with pytest.raises(InputError, match="dict"):
        hidden_of({"hidden": old})
