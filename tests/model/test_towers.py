"""What stays in floating point beside the blocks has a name."""

import pytest
import torch
import transformers

from channelwise.model.blocks import find_blocks
from channelwise.model.linears import is_linear
from channelwise.model.towers import left_floating
from tests.model.tiny_models import tiny_model
from tests.model.tiny_towers import FAMILIES, multi_modal


def floating_of(model: torch.nn.Module) -> tuple[str, ...]:
    return left_floating(model, find_blocks(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_towers_and_projectors_are_named(name: str) -> None:
    assert floating_of(multi_modal(name)) == FAMILIES[name].floating


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_is_in_a_block_or_the_head_or_in_what_is_named(name: str) -> None:
    model = multi_modal(name)
    homes = (*floating_of(model), find_blocks(model).prefix)
    layers = [full for full, module in model.named_modules() if is_linear(module) and full != "lm_head"]
    assert [full for full in layers if not f"{full}.".startswith(tuple(f"{home}." for home in homes))] == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("llama", ()),
        ("gpt2", ()),
        ("opt_350m", ("model.decoder.project_out", "model.decoder.project_in")),
        ("bert", ("pooler",)),
        ("vit", ("classifier",)),
        ("mixtral", ()),
    ],
)
def test_models_of_one_tower_leave_only_their_ends(name: str, named: tuple[str, ...]) -> None:
    assert floating_of(tiny_model(name, torch.float32)) == named


def test_what_stands_around_the_output_layer_is_named_but_not_the_layer() -> None:
    model = transformers.BertForMaskedLM(tiny_model("bert", torch.float32).config)
    assert floating_of(model) == ("cls.predictions.transform",)


def test_another_stack_of_blocks_is_named() -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=64, **sizes, **heads))
    assert find_blocks(model).prefix == "model.decoder.layers"
    assert floating_of(model) == ("model.encoder",)
