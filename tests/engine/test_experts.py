"""Experts that few tokens reached take what their siblings saw."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from channelwise.engine.experts import (
    MINIMUM_TOKENS,
    WARNING,
    has_too_few,
    like_sites,
    quantize_with_siblings,
    recorded_statistics,
    shared_statistics,
)
from channelwise.engine.plan import InputPlan, SitePlan, WeightPlan
from channelwise.engine.statistics import StatisticsBuilder
from channelwise.methods.none import NoTransform
from channelwise.methods.os_plus import OutlierSuppressionPlus
from channelwise.methods.outliertune import OutlierTune
from channelwise.methods.site import ChannelStatistics, Method
from channelwise.model.sites import Site
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid

EIGHT_BITS = IntegerGrid(8, symmetric=False)
WEIGHTS = WeightPlan((IntegerGrid(8, symmetric=True),), ROW)
STATIC = InputPlan((EIGHT_BITS,), "static")


def seen(x: torch.Tensor) -> ChannelStatistics:
    builder = StatisticsBuilder(x.shape[-1])
    builder.update(x)
    return builder.finish()


def site(name: str, kind: str = "stream") -> Site:
    return Site(name, (name,), 4, kind, 0, (), False, "")  # type: ignore[arg-type]


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + torch.tensor([0.0, 1.0, -2.0, 5.0])


class Routed(nn.Module):
    """Three experts with a router beside them, and layers in a list that no router chooses from."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = nn.Module()
        self.moe.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)) for _ in range(3)])
        self.moe.gate = nn.Linear(4, 3, bias=False)
        self.dense = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])


SITES = (*(site(f"moe.experts.{index}.{place}") for index in range(3) for place in (0, 1)), site("dense.0.0"))


def test_sites_in_the_same_place_of_like_experts_are_alike() -> None:
    likes = like_sites(Routed(), SITES)
    assert likes["moe.experts.1.0"] == ("moe.experts.0.0", "moe.experts.1.0", "moe.experts.2.0")
    assert likes["moe.experts.2.1"] == ("moe.experts.0.1", "moe.experts.1.1", "moe.experts.2.1")


def test_layers_that_no_router_chooses_from_never_have_too_few_tokens() -> None:
    likes = like_sites(Routed(), SITES)
    assert "dense.0.0" not in likes
    assert not has_too_few(site("dense.0.0"), 1, likes)
    assert has_too_few(site("moe.experts.0.0"), MINIMUM_TOKENS - 1, likes)
    assert not has_too_few(site("moe.experts.0.0"), MINIMUM_TOKENS, likes)


def test_shared_statistics_are_those_of_all_siblings_tokens_together() -> None:
    parts = [tokens(count, seed) for seed, count in enumerate((3, 5, 40))]
    shared = shared_statistics([seen(part) for part in parts])
    together = seen(torch.cat(parts))
    assert shared is not None
    assert torch.equal(shared.minimum, together.minimum) and torch.equal(shared.maximum, together.maximum)
    assert shared.tokens == 48
    assert shared.mean_absolute is not None and together.mean_absolute is not None
    torch.testing.assert_close(shared.mean_absolute, together.mean_absolute)


def test_the_centre_of_samples_counts_by_tokens_and_a_silent_sibling_not_at_all() -> None:
    one, three = seen(torch.zeros(1, 4)), seen(torch.ones(3, 4))
    silent = replace(one, minimum=torch.full((4,), -9.0), sample_center=torch.full((4,), 9.0), tokens=0)
    shared = shared_statistics([one, silent, three])
    assert shared is not None
    assert torch.equal(shared.sample_center, torch.full((4,), 0.75))
    assert torch.equal(shared.minimum, torch.zeros(4))
    assert shared_statistics([silent]) is None


def test_means_that_not_all_siblings_have_are_left_out() -> None:
    shared = shared_statistics([seen(tokens(4)), replace(seen(tokens(4, 1)), mean_absolute=None)])
    assert shared is not None and shared.mean_absolute is None


def choose(
    method: Method, kind: str, shared: ChannelStatistics | None, count: int = 3, inputs: InputPlan | None = STATIC
):
    linear = nn.Linear(4, 6)
    plan = SitePlan(method, inputs)
    return quantize_with_siblings(site("e", kind), {"e": linear}, count, shared, plan, WEIGHTS)


def test_the_site_is_named_in_its_note_and_warned_of() -> None:
    choice, _ = choose(NoTransform(), "stream", seen(tokens(64)))
    assert choice.notes["note"] == "3 tokens reached it: rounded to nearest with its siblings' statistics"
    assert choice.notes["warning"] == WARNING
    assert str(MINIMUM_TOKENS) in WARNING
    choice, _ = choose(NoTransform(), "stream", seen(tokens(64)), count=1)
    assert str(choice.notes["note"]).startswith("1 token reached it")


def test_a_static_range_is_the_siblings() -> None:
    x = tokens(64)
    _, layers = choose(NoTransform(), "stream", seen(x))
    quantizer = layers["e"].inputs
    assert quantizer is not None and quantizer.step is not None
    assert float(quantizer.step) == pytest.approx(float(x.amax() - x.amin()) / 255)
    assert layers["e"].codes is None


def test_a_transform_that_follows_from_statistics_is_kept_where_siblings_share_their_channels() -> None:
    shared = seen(tokens(64))
    choice, _ = choose(OutlierTune(), "stream", shared)
    assert choice.transform.shift is not None and torch.equal(choice.transform.shift, shared.sample_center)
    inner, _ = choose(OutlierTune(), "inner", shared)
    assert inner.transform.is_identity


@dataclass(frozen=True)
class AsksForSamples:
    """A method that looks at tokens."""

    def choose(self, view):
        return view.samples


@pytest.mark.parametrize("method", [OutlierSuppressionPlus(), AsksForSamples()])
def test_a_method_that_searches_on_tokens_leaves_the_channels_as_they_are(method: Method) -> None:
    choice, layers = choose(method, "stream", seen(tokens(64)))
    assert choice.transform.is_identity and layers["e"].inputs is not None


def test_without_any_siblings_tokens_ranges_are_found_per_token() -> None:
    choice, layers = choose(OutlierTune(), "stream", None, count=0)
    assert choice.transform.is_identity
    assert layers["e"].inputs is not None and layers["e"].inputs.scheme.kind == "token"
    assert str(choice.notes["note"]).startswith("no token reached it")


def test_inputs_in_floating_point_stay_so() -> None:
    _, layers = choose(NoTransform(), "stream", None, count=0, inputs=None)
    assert layers["e"].inputs is None


def test_the_record_tells_the_siblings_channels_and_the_sites_own_tokens() -> None:
    shared = seen(tokens(64))
    told = recorded_statistics(site("e"), 3, shared)
    assert told.tokens == 3 and torch.equal(told.maximum, shared.maximum)
    silent = recorded_statistics(site("e"), 0, None)
    assert silent.tokens == 0 and not bool(silent.absolute_maximum.any())
