"""Bytes and bits."""

import torch
from torch import nn

from channelwise.evaluation.sizes import model_sizes
from tests.cli import tiny


def test_a_floating_point_model_has_the_bits_of_its_dtype() -> None:
    sizes = model_sizes(tiny.llama().bfloat16())
    assert sizes.bits_per_weight == 16.0


def test_bytes_are_those_of_all_parameters_tied_ones_once() -> None:
    model = tiny.llama(tie_word_embeddings=True)
    assert model_sizes(model).model_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_buffers_count_only_where_they_are_stored() -> None:
    module = nn.Module()
    module.register_buffer("kept", torch.zeros(10))
    module.register_buffer("made", torch.zeros(10), persistent=False)
    sizes = model_sizes(module)
    assert sizes.model_bytes == 40
    assert sizes.bits_per_weight is None
