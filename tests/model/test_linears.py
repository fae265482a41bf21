"""Linear layers of both layouts look the same."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from channelwise.model.linears import (
    bias_vector,
    is_linear,
    linear_names,
    replace_module,
    set_weight,
    weight_matrix,
)


def layers() -> list[nn.Module]:
    return [nn.Linear(3, 5), Conv1D(5, 3)]


def test_linear_conv1d_and_subclasses_are_linear_and_others_are_not() -> None:
    class Special(nn.Linear):
        pass

    assert all(map(is_linear, [*layers(), Special(2, 2)]))
    assert not is_linear(nn.Embedding(3, 3))
    assert not is_linear(nn.LayerNorm(3))


def test_a_linear_layer_whose_weight_is_quantized_is_not_linear() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    assert not is_linear(layer)


@pytest.mark.parametrize("layer", layers())
def test_the_weight_is_seen_as_out_by_in_and_shares_memory(layer: nn.Module) -> None:
    matrix = weight_matrix(layer)
    assert matrix.shape == (5, 3)
    assert matrix.data_ptr() == layer.weight.data_ptr()
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), x @ matrix.t() + bias_vector(layer))


@pytest.mark.parametrize("layer", layers())
def test_set_weight_writes_in_place_in_the_layers_own_dtype(layer: nn.Module) -> None:
    layer.to(torch.bfloat16)
    pointer = layer.weight.data_ptr()
    set_weight(layer, torch.full((5, 3), 2.0), torch.full((5,), 3.0))
    assert layer.weight.data_ptr() == pointer
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert bool((weight_matrix(layer) == 2.0).all()) and bool((bias_vector(layer) == 3.0).all())


def test_set_weight_gives_a_layer_without_bias_one_only_if_asked() -> None:
    layer = nn.Linear(3, 5, bias=False)
    set_weight(layer, torch.ones(5, 3), None)
    assert bias_vector(layer) is None
    set_weight(layer, torch.ones(5, 3), torch.ones(5))
    assert isinstance(layer.bias, nn.Parameter)
    torch.testing.assert_close(layer(torch.ones(1, 3)), torch.full((1, 5), 4.0))


def test_wrong_shapes_and_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        set_weight(nn.Linear(3, 5), torch.ones(3, 5), None)
    with pytest.raises(ValueError, match="bias"):
        set_weight(nn.Linear(3, 5), torch.ones(5, 3), torch.ones(3))
    with pytest.raises(TypeError, match="LayerNorm"):
        weight_matrix(nn.LayerNorm(3))


def test_modules_are_replaced_by_dotted_name() -> None:
    root = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    assert linear_names(root) == ("0.0", "1")
    replace_module(root, "0.0", nn.Identity())
    replace_module(root, "1", nn.Identity())
    assert linear_names(root) == ()
    with pytest.raises(AttributeError):
        replace_module(root, "0.7", nn.Identity())
