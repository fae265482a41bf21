"""What a candidate costs, at the sites of a small Llama."""

import pytest
import torch

from channelwise.engine import layer_outputs
from channelwise.engine.evaluator import CLIPS, SiteEvaluator, loss_dependents, with_searched_clip
from channelwise.engine.layer_outputs import quantized_weight
from channelwise.engine.plan import InputPlan, WeightPlan
from channelwise.methods import NoTransform
from channelwise.methods.site import Candidate, ChannelStatistics
from channelwise.model.blocks import find_blocks
from channelwise.model.calls import capture_calls
from channelwise.model.sites import discover_sites
from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.packed import takes_integers
from channelwise.runtime.trial import trial_execution
from tests.engine.test_walk import BATCHES, tiny_llama
from tests.methods.sites import outlier_site


def evaluator(name: str, inputs: InputPlan | None, granularity: Granularity = ROW) -> SiteEvaluator:
    model = tiny_llama()
    block = model.model.layers[0]
    call = capture_calls(model, find_blocks(model), BATCHES[:1])[0][0]
    site = next(site for site in discover_sites(block, call) if site.name == name)
    low, high = torch.full((site.channels,), -40.0), torch.full((site.channels,), 40.0)
    return SiteEvaluator(
        block, site, ChannelStatistics(low, high, low + high, 1), [lambda: call.run(block)],
        WeightPlan((IntegerGrid(8),), granularity), inputs, loss_dependents(site),
    )  # fmt: skip


def test_the_loss_of_q_k_v_is_measured_behind_the_attention() -> None:
    q = evaluator("self_attn.q_proj", None)
    assert q.dependents == ("self_attn.o_proj",)
    assert evaluator("mlp.gate_proj", None).dependents == ("mlp.down_proj",)
    assert evaluator("mlp.down_proj", None).dependents == ()
    with torch.no_grad():
        # A scale on all key channels alike changes q·k only by weight rounding, v not at all: the loss stays small,
        # where coarse inputs change what attention gives.
        fine = q.loss(ChannelTransform())
        coarse = evaluator("self_attn.q_proj", InputPlan((IntegerGrid(3),), "token")).loss(ChannelTransform())
    assert 0 < fine < coarse


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj"])
def test_losses_that_are_asked_together_are_those_asked_one_by_one(name: str) -> None:
    site = evaluator(name, InputPlan((IntegerGrid(4),), "static"))
    channels = site.site.channels
    candidates = [Candidate(ChannelTransform(scale=torch.linspace(1, s, channels)), 1 / s) for s in (1, 2, 3)]
    with torch.no_grad():
        together = site.losses(candidates)
        assert together == [site.loss(candidate.transform, candidate.clip) for candidate in candidates]
        assert len(set(together)) == 3
        assert site.losses([]) == []


def test_the_loss_of_a_single_layer_is_that_of_its_output() -> None:
    down = evaluator("mlp.down_proj", InputPlan((IntegerGrid(6),), "token"))
    transform = ChannelTransform()
    with torch.no_grad():
        loss = down.loss(transform)
        layer = down.block.mlp.down_proj
        x, targets = down._targets[0].x, down._targets[0].seen
        exact = torch.nn.functional.linear(x.float(), layer.weight)
        encoder = encoder_of(down.input_plan.scheme, transform, None, None, None)
        inputs = encoder(x).values()
        given = torch.nn.functional.linear(inputs, quantized_weight(layer.weight, down.weight_plan))
    assert torch.equal(targets[0], exact)
    assert loss == pytest.approx(float((given - exact).square().sum(dim=-1).mean()), rel=1e-5)


@pytest.mark.parametrize("inputs", [InputPlan((IntegerGrid(6),), kind) for kind in ("static", "token")], ids=str)
@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_integers_change_no_loss(monkeypatch: pytest.MonkeyPatch, name: str, inputs: InputPlan) -> None:
    site = evaluator(name, inputs)
    scale = torch.linspace(1, 5, site.site.channels)
    transform = ChannelTransform(scale.sin(), scale)
    with torch.no_grad():
        by_integers = site.loss(transform, 0.9)
        monkeypatch.setattr(layer_outputs, "trial_execution", lambda *args: None)
        assert by_integers == pytest.approx(site.loss(transform, 0.9), rel=1e-4)


@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 8)], ids=str)
def test_a_few_rows_of_a_weight_at_a_time_change_nothing(
    monkeypatch: pytest.MonkeyPatch, granularity: Granularity
) -> None:
    site = evaluator("self_attn.q_proj", InputPlan((IntegerGrid(6),), "static"), granularity)
    transform = ChannelTransform(scale=torch.linspace(1, 5, site.site.channels))
    with torch.no_grad():
        at_once = site.loss(transform)
        monkeypatch.setattr(layer_outputs, "WIDENED", 8 * site.site.channels)
        again = evaluator("self_attn.q_proj", InputPlan((IntegerGrid(6),), "static"), granularity)
        assert again.loss(transform) == pytest.approx(at_once, rel=1e-4)


@pytest.mark.skipif(not takes_integers(), reason="torch's products, whose inputs nothing shares, are faster here")
def test_the_codes_of_an_input_are_found_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def execution(*args: object) -> object:
        found = trial_execution(*args)
        if hasattr(found, "bytes_of"):
            counted = found.bytes_of
            object.__setattr__(found, "bytes_of", lambda x: (asked.append(x), counted(x))[1])
        return found

    monkeypatch.setattr(layer_outputs, "trial_execution", execution)
    site = evaluator("self_attn.q_proj", InputPlan((IntegerGrid(8),), "static"))
    with torch.no_grad():
        site.loss(ChannelTransform())
    assert len(site.site.linears) == 3
    assert len(asked) == len(site.runs)


def test_a_searched_clip_never_raises_the_loss_and_pays_under_a_rare_large_token() -> None:
    site = outlier_site(0, grid=IntegerGrid(4))
    site.x[0, 0] *= 3
    choice = NoTransform().choose(site)
    clipped = with_searched_clip(choice, site)
    assert clipped.notes["loss"] == min(site.loss(choice.transform, clip) for clip in CLIPS)
    assert clipped.clip < 1
    assert clipped.notes["loss"] < site.loss(choice.transform)
