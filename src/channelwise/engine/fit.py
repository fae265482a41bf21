"""How a plan and a model fit together: what it quantizes, what it leaves, whether it can."""

import copy

from torch import nn

from channelwise.engine.plan import Plan
from channelwise.engine.tail import head_name
from channelwise.errors import InputError
from channelwise.model.batches import is_causal
from channelwise.model.blocks import BlockList
from channelwise.model.experts import unfuse_experts
from channelwise.model.linears import is_linear, linear_names, weight_matrix
from channelwise.model.routers import floating_weights
from channelwise.model.towers import left_floating


def check_plan(model: nn.Module, blocks: BlockList, plan: Plan) -> None:
    """Raises InputError if every linear layer is excluded, or a group of the plan is wider than a layer."""
    total = 0
    for prefix, block in zip(blocks.names, blocks.modules(model), strict=True):
        for name, module in block.named_modules():
            full = f"{prefix}.{name}"
            if not is_linear(module) or plan.excludes(full):
                continue
            total += 1
            size = plan.weights.granularity.group_size
            rows, columns = weight_matrix(module).shape
            along = rows if plan.weights.granularity.kind == "column_group" else columns
            if size is not None and size > along:
                raise InputError(
                    f"{full}: groups of {size} do not fit its {along} channels; choose a smaller group_size"
                )
    if total == 0:
        raise InputError("the recipe's `exclude` leaves no linear layer to quantize; exclude less")


def head_to_quantize(model: nn.Module, plan: Plan) -> str | None:
    """The full name of the output layer, if the model has one and the plan does not leave it in floating point."""
    name = head_name(model) if plan.head is not None else None
    return None if name is None or plan.excludes(name) else name


def left_as_it_is(model: nn.Module, blocks: BlockList, plan: Plan) -> tuple[str, ...]:
    """Names of what the plan leaves as it is, before the walk. Raises InputError if it does not fit the model."""
    check_plan(model, blocks, plan)
    head = head_name(model)
    kept_head = (head,) if head is not None and head_to_quantize(model, plan) is None else ()
    within = []
    for name, block in zip(blocks.names, blocks.modules(model), strict=True):
        within += [f"{name}.{linear}" for linear in linear_names(block) if plan.excludes(f"{name}.{linear}")]
        within += [f"{name}.{module}" for module in floating_weights(block)]
    return (*within, *left_floating(model, blocks), *kept_head)


def taken_apart(skeleton: nn.Module) -> nn.Module:
    """A model without weights as it will be quantized, its experts apart; the skeleton stays as its files are."""
    twin = copy.deepcopy(skeleton)
    unfuse_experts(twin)
    return twin


def asks_for_importance(model: nn.Module, plan: Plan) -> bool:
    """Whether the plan weighs errors by gradients, which go through the whole model."""
    return plan.objective == "fisher" or (plan.objective == "auto" and not is_causal(model))
