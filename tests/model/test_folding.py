"""Transforms change nothing, wherever they go."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from channelwise.model.blocks import find_blocks
from channelwise.model.folding import TransformedLinear, apply_transforms, fold_transform, tie_transform
from channelwise.model.norms import norm_kind
from channelwise.model.producers import Fold
from channelwise.model.sites import Site
from channelwise.numerics.transform import ChannelTransform
from tests.model.tiny_models import NAMES, tiny_batch, tiny_output
from tests.model.walks import Step, random_vectors, unfused_model, walk

FLOAT32_WEIGHT = {"gemma3", "cohere"}
"""Their norms round the weight to float32: a fold is exact only where the folded weight is a float32 number."""


def transforms_for(step: Step, tied: bool) -> dict[str, ChannelTransform]:
    generator = torch.Generator().manual_seed(1)
    transforms = {}
    for site, fold in zip(step.sites, step.folds, strict=True):
        transform = ChannelTransform(*random_vectors(site.channels, generator))
        transforms[site.name] = tie_transform(transform, fold.channel_map) if tied and fold.scale else transform
    return transforms


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "at the quantizer"])
@pytest.mark.parametrize("name", NAMES)
def test_the_models_output_stays_what_it_was(name: str, fold: bool) -> None:
    model = unfused_model(name)
    exact_weights = fold and name in FLOAT32_WEIGHT
    if exact_weights:
        round_norm_weights(model)
    assert relative_change(model, name, fold, powers_of_two=exact_weights) <= 1e-9


@pytest.mark.parametrize("name", sorted(FLOAT32_WEIGHT))
def test_a_norm_that_rounds_its_weight_to_float32_limits_a_fold_to_that(name: str) -> None:
    # A few roundings of 2^-24 each, through two blocks.
    assert relative_change(unfused_model(name), name, fold=True, powers_of_two=False) <= 2**-20


def round_norm_weights(model: nn.Module) -> None:
    """Norm weights in steps of 1/64, so that dividing them by a power of two stays a float32."""
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" in parameter_name:
            parameter.data = (parameter.data * 64).round() / 64


def relative_change(model: nn.Module, name: str, fold: bool, powers_of_two: bool) -> float:
    """How much random transforms at all sites change the output; each proven fold must have been used."""
    batch = tiny_batch(model, seed=5)
    before = tiny_output(model, batch)
    for block, step in zip(find_blocks(model).modules(model), walk(name), strict=True):
        transforms = transforms_for(step, tied=fold)
        if powers_of_two:
            transforms = {
                site: ChannelTransform(t.shift, torch.exp2(torch.log2(t.scale).round()))
                for site, t in transforms.items()
            }
        places = apply_transforms(block, step.sites, transforms, step.folds, fold=fold)
        for found in step.folds:
            folded = places[found.site].startswith(f"producer {found.producer}")
            assert folded == (fold and found.scale)
    return float((tiny_output(model, batch) - before).abs().max() / before.abs().max())


def test_without_folding_every_transformed_layer_holds_its_transform() -> None:
    model = unfused_model("llama")
    block, step = find_blocks(model).modules(model)[0], walk("llama")[0]
    transforms = transforms_for(step, tied=False)
    places = apply_transforms(block, step.sites, transforms, step.folds, fold=False)
    assert set(places.values()) == {"quantizer"}
    key = block.self_attn.k_proj
    assert isinstance(key, TransformedLinear)
    assert torch.equal(key.scale, transforms["self_attn.q_proj"].scale)
    assert torch.equal(key.shift, transforms["self_attn.q_proj"].shift)


def test_a_full_fold_leaves_plain_layers_and_a_missing_bias_keeps_the_shift() -> None:
    model = unfused_model("opt")
    block, step = find_blocks(model).modules(model)[0], walk("opt")[0]
    places = apply_transforms(block, step.sites, transforms_for(step, tied=True), step.folds, fold=True)
    assert places["self_attn.q_proj"] == "producer self_attn_layer_norm"
    assert type(block.self_attn.q_proj) is nn.Linear
    assert places["fc2"] == "producer fc1, shift at the quantizer"
    assert block.fc2.scale is None and block.fc2.shift is not None


def test_channels_of_one_producer_channel_that_want_different_scales_are_not_folded() -> None:
    model = unfused_model("llama")
    block, step = find_blocks(model).modules(model)[0], walk("llama")[0]
    places = apply_transforms(block, step.sites, transforms_for(step, tied=False), step.folds, fold=True)
    assert places["self_attn.o_proj"] == "quantizer"
    assert places["self_attn.q_proj"].startswith("producer")


def test_sites_without_a_transform_are_left_alone() -> None:
    model = unfused_model("opt")
    block, step = find_blocks(model).modules(model)[0], walk("opt")[0]
    weight = block.fc1.weight.clone()
    transforms = {"fc1": ChannelTransform(), "fc2": ChannelTransform(scale=torch.full((48,), 2.0))}
    assert apply_transforms(block, step.sites, transforms, step.folds, fold=False) == {"fc2": "quantizer"}
    assert torch.equal(block.fc1.weight, weight)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.left, self.right = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(self.norm(x).clone()) + self.right(self.norm(x).clone())


@pytest.mark.parametrize("agree", [True, False])
def test_a_producer_of_two_sites_is_used_only_if_they_agree(agree: bool) -> None:
    torch.manual_seed(0)
    block, x = Shared().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    sites = tuple(Site(name, (name,), 4, "stream", 0, (), False, "") for name in ("left", "right"))
    folds = tuple(Fold(name, "norm", torch.arange(4), True, True, "") for name in ("left", "right"))
    one = ChannelTransform(torch.ones(4), torch.full((4,), 3.0))
    other = one if agree else ChannelTransform(torch.ones(4), torch.full((4,), 2.0))
    before = block(x)
    places = apply_transforms(block, sites, {"left": one, "right": other}, folds, fold=True)
    assert set(places.values()) == {"producer norm" if agree else "quantizer"}
    torch.testing.assert_close(block(x), before, rtol=1e-12, atol=1e-12)


def test_a_producer_is_not_used_for_one_of_its_sites_alone() -> None:
    torch.manual_seed(0)
    block, x = Shared().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    sites = tuple(Site(name, (name,), 4, "stream", 0, (), False, "") for name in ("left", "right"))
    folds = tuple(Fold(name, "norm", torch.arange(4), True, True, "") for name in ("left", "right"))
    before = block(x)
    only = {"left": ChannelTransform(torch.ones(4), torch.full((4,), 3.0))}
    assert apply_transforms(block, sites, only, folds, fold=True) == {"left": "quantizer"}
    torch.testing.assert_close(block(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("producer", "kind"),
    [
        (nn.LayerNorm(6), "weight"),
        (LlamaRMSNorm(6), "weight"),
        (Gemma3RMSNorm(6), "one_plus_weight"),
        (nn.Linear(6, 6), None),
        (Conv1D(6, 6), None),
        (nn.PReLU(6), None),
        (nn.Embedding(6, 6), None),
    ],
)
def test_folding_into_a_producer_transforms_its_output(producer: nn.Module, kind: str | None) -> None:
    assert norm_kind(producer) == kind
    for parameter in producer.double().parameters():
        parameter.data = torch.randn_like(parameter)
    if isinstance(producer, nn.PReLU | nn.Embedding):
        with pytest.raises(ValueError, match="neither"):
            fold_transform(producer, ChannelTransform(scale=torch.ones(6)))
        return
    x = torch.randn(5, 6, dtype=torch.float64)
    shift, scale = random_vectors(6, torch.Generator().manual_seed(0))
    has_bias = getattr(producer, "bias", None) is not None
    transform = ChannelTransform(shift if has_bias else None, scale)
    expected = transform.apply(producer(x))
    if not has_bias:
        with pytest.raises(ValueError, match="no bias"):
            fold_transform(producer, ChannelTransform(shift, scale))
    fold_transform(producer, transform)
    torch.testing.assert_close(producer(x), expected, rtol=1e-6, atol=1e-6)


def test_tying_takes_the_largest_scale_and_the_mean_shift() -> None:
    tied = tie_transform(
        ChannelTransform(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])), torch.tensor([2, 0, 2])
    )
    assert tied.shift is not None and tied.shift.tolist() == [2.0, 2.0, 2.0]
    assert tied.scale is not None and tied.scale.tolist() == [6.0, 5.0, 6.0]
    assert tie_transform(ChannelTransform(), torch.tensor([0])).is_identity
