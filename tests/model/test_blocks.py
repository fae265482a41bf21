"""Where the blocks are."""

import pytest
import torch
import transformers
from torch import nn

from channelwise.errors import InputError
from channelwise.model.blocks import find_blocks, hidden_of, with_hidden
from channelwise.model.experts import unfuse_experts
from tests.model.tiny_models import NAMES, tiny_model
from tests.model.tiny_towers import FAMILIES, multi_modal


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


@pytest.mark.parametrize("name", FAMILIES)
def test_the_language_model_has_the_blocks_though_its_towers_are_larger(name: str) -> None:
    model, wanted = multi_modal(name), FAMILIES[name].blocks
    assert find_blocks(model).prefix == wanted
    assert find_blocks(model.to("meta")).prefix == wanted


def test_blocks_are_found_by_running_where_nothing_names_a_decoder() -> None:
    class Reader(nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4)
            self.unread = nn.ModuleList([nn.Linear(40, 40) for _ in range(2)])
            self.read = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.table(input_ids)
            for layer in self.read:
                hidden = layer(hidden)
            return hidden

    assert find_blocks(Reader()).prefix == "read"


def test_looking_for_blocks_leaves_the_model_as_it_is() -> None:
    model = multi_modal("llava")
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    find_blocks(model)
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == place and torch.equal(after[name], value) for name, (place, value) in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_language_model_of_blocks_of_several_classes_is_refused_and_not_its_tower_taken() -> None:
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1}
    sizes = {"image_size": 28, "patch_size": 14, "vision_output_dim": 64, "intermediate_layers_indices": [0]}
    config = transformers.MllamaConfig(
        text_config={**text, **heads, **rope}, vision_config={**vision, **sizes, "attention_heads": 4}
    )
    with pytest.raises(InputError, match=r"model.language_model.layers.*several classes.*MllamaCrossAttention"):
        find_blocks(transformers.MllamaForConditionalGeneration(config))


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
