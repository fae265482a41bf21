"""The walk on a GPU, a simulated one: nothing is on the wrong device, and the host seldom waits."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from channelwise.engine.plan import InputPlan, Plan, SitePlan, WalkRecord, WeightPlan
from channelwise.engine.walk import quantize_model
from channelwise.methods import Awq, NoTransform, OutlierSuppressionPlus, OutlierTune, format_search
from channelwise.methods.site import Method
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid
from channelwise.recipe import Recipe, load_recipe
from channelwise.runtime import trial
from tests.simulated import Simulation, move, on_device, values_of

BATCHES = [{"input_ids": ids} for ids in torch.randint(64, (6, 2, 12), generator=torch.Generator().manual_seed(0))]

ONCE_PER_SAMPLE = "model/calls.py"
"""Where arguments of blocks are captured, once in a run: masks are compared, transformers makes some from numbers."""


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def small_plan(name: str) -> Plan:
    """A recipe's plan with groups that fit the small model."""
    recipe = load_recipe(name)
    data = recipe.model_dump()
    if data["weights"].get("group_size"):
        data["weights"]["group_size"] = 16
    return replace(Recipe(**data).to_plan(), search_tokens=60)


def walked_there(plan: Plan, samples: int = 3) -> tuple[LlamaForCausalLM, WalkRecord]:
    model = small_llama()
    move(model)
    batches = [{"input_ids": on_device(batch["input_ids"])} for batch in BATCHES[:samples]]
    return model, quantize_model(model, batches, plan)


def waits_of(simulation: Simulation, plan: Plan, samples: int = 3) -> Counter[str]:
    """How often one walk waits, by place."""
    simulation.waits.clear()
    walked_there(plan, samples)
    return Counter({place: count for place, count in simulation.waits.items() if ONCE_PER_SAMPLE not in place})


@pytest.mark.parametrize(
    "recipe",
    [
        "rtn-ada-w3g128",
        "outliertune-static-w8a8",
        "os-plus-w6a6",
        "smoothquant-token-w6a6",
        "awq-w4g128",
        "gptq-ada-w2g128",
        "llm-fp4-gptq-w4a4",
    ],
)
def test_a_walk_on_a_device_gives_the_codes_and_the_record_of_one_on_the_cpu(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    # On the device searches compute in float32, which rounds otherwise than integers do.
    for module in (trial, format_search):
        monkeypatch.setattr(module, "integers_are_fast", lambda: False)
    plan = small_plan(recipe)
    here = small_llama()
    expected = quantize_model(here, BATCHES[:3], plan)
    there, record = walked_there(plan)
    found = {name: values_of(tensor) for name, tensor in there.state_dict().items()}
    assert all(tensor.device == simulation.device for tensor in there.state_dict().values())
    assert record.sites == expected.sites
    assert record.embedding == expected.embedding
    for name, tensor in here.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("recipe", ["outliertune-static-w8a8", "os-plus-w6a6", "gptq-ada-w3g128", "llm-fp4-w4a4"])
def test_the_host_does_not_wait_more_often_for_more_samples(simulation: Simulation, recipe: str) -> None:
    plan = small_plan(recipe)
    # All samples are searched on, so that searches have more to look at, too.
    plan = replace(plan, search_tokens=10_000)
    assert waits_of(simulation, plan, 2) == waits_of(simulation, plan, 5)


def with_method(method: Method, *, clip: bool = False) -> Plan:
    inputs = InputPlan((IntegerGrid(6),), "static")
    return Plan(
        WeightPlan((IntegerGrid(6),), ROW), SitePlan(method, inputs), SitePlan(NoTransform(), inputs, search_clip=clip)
    )


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (OutlierSuppressionPlus(steps=4, search="full"), OutlierSuppressionPlus(steps=12, search="full")),
        (OutlierSuppressionPlus(steps=30), OutlierSuppressionPlus(steps=60)),
        (Awq(steps=2), Awq(steps=6)),
    ],
    ids=str,
)
def test_the_host_does_not_wait_more_often_for_more_candidates(
    simulation: Simulation, few: Method, many: Method
) -> None:
    assert waits_of(simulation, with_method(few)) == waits_of(simulation, with_method(many))


def test_searches_of_a_shift_and_of_a_clip_wait_once_for_each_site(simulation: Simulation) -> None:
    place = "engine/evaluator.py: _means"
    waits = waits_of(simulation, with_method(OutlierTune(shift="search"), clip=True))
    # Two sites of either kind.
    assert waits[place] == 4
    assert waits_of(simulation, with_method(OutlierTune()))[place] == 0
