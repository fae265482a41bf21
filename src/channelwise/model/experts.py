"""Mixtures of experts whose weights are 3-D parameters, made into lists of experts with linear layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.linears import is_linear, replace_module


class Expert(nn.Module):
    """One expert: down_proj(gate(gate_proj(x), up_proj(x)))."""

    def __init__(self, gate_proj: nn.Linear, up_proj: nn.Linear, down_proj: nn.Linear, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.act_fn = act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden] to the same shape."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class UnfusedExperts(nn.ModuleList):
    """The experts of one layer as a list of modules; the same outputs as the fused module that it replaces."""

    def __init__(self, experts: list[Expert]) -> None:
        super().__init__(experts)
        self.num_experts = len(experts)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sum of each token's experts.

        hidden_states: [tokens, hidden]; top_k_index, int64, and top_k_weights: [tokens, k]. An index past the last
        expert means none. Returns [tokens, hidden] in the dtype of hidden_states.
        """
        total = torch.zeros_like(hidden_states)
        for index in torch.unique(top_k_index).tolist():
            if index >= self.num_experts:
                continue
            tokens, choice = torch.where(top_k_index == index)
            output = self[index](hidden_states[tokens]) * top_k_weights[tokens, choice, None]
            total.index_add_(0, tokens, output.to(total.dtype))
        return total


def unfuse_experts(model: nn.Module) -> tuple[str, ...]:
    """Replaces every module of fused experts by an UnfusedExperts, in place; returns their names. Meta stays meta.

    The new weights are views of the old parameters. Raises InputError, before anything is changed, for a fused module
    of a layout that is not known: transposed, interleaved, with biases, without a gate, or with a gate of its own.
    """
    fused = {name: module for name, module in model.named_modules() if name and _is_fused(module)}
    unfused = {name: _unfused(name, module) for name, module in fused.items()}
    for name, module in unfused.items():
        replace_module(model, name, module)
    return tuple(unfused)


def sibling_prefixes(block: nn.Module) -> list[tuple[str, ...]]:
    """Prefixes ("mlp.experts.0.", ...) of like modules that hold linear layers, one tuple for each ModuleList."""
    groups = []
    for name, module in block.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        like = len({type(child) for child in module}) == 1
        if like and all(not is_linear(child) and any(map(is_linear, child.modules())) for child in module):
            groups.append(tuple(f"{name}.{index}." for index in range(len(module))))
    return groups


def _is_fused(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters(recurse=False))
    return any(name in parameters and parameters[name].ndim == 3 for name in ("gate_up_proj", "up_proj", "down_proj"))


def _unfused(name: str, module: nn.Module) -> UnfusedExperts:
    reason = _unknown_layout(module)
    if reason:
        raise InputError(f"experts of {name} ({type(module).__name__}) cannot be taken apart: {reason}")
    gate_up: torch.Tensor = module.get_parameter("gate_up_proj").detach()
    down: torch.Tensor = module.get_parameter("down_proj").detach()
    inner = down.shape[2]
    act_fn = module.get_submodule("act_fn")
    experts = [
        Expert(_linear(gate_up[index, :inner]), _linear(gate_up[index, inner:]), _linear(down[index]), act_fn)
        for index in range(gate_up.shape[0])
    ]
    unfused = UnfusedExperts(experts)
    unfused.train(module.training)
    return unfused


def _unknown_layout(module: nn.Module) -> str:
    """Why this module's experts are not gate, up, down as [experts, out, in]; empty if they are."""
    parameters = dict(module.named_parameters(recurse=False))
    if set(parameters) != {"gate_up_proj", "down_proj"}:
        return f"it has the parameters {', '.join(sorted(parameters))}, known are gate_up_proj and down_proj"
    (experts, doubled, hidden), down = parameters["gate_up_proj"].shape, parameters["down_proj"].shape
    if tuple(down) != (experts, hidden, doubled // 2) or getattr(module, "is_transposed", False):
        return f"its weights are {(experts, doubled, hidden)} and {tuple(down)}, not [experts, out, in]"
    if not isinstance(getattr(module, "act_fn", None), nn.Module) or getattr(module, "has_post_expert_norm", False):
        return "its gate or its output is not activation(gate) * up alone"
    if not getattr(module, "is_concatenated", True) or _gates_itself(module):
        return "its gate is not activation(gate) * up of two concatenated halves"
    return ""


def _gates_itself(module: nn.Module) -> bool:
    """Whether the module's gate is something else than activation(gate) * up, found by trying it."""
    gate: Callable[[torch.Tensor], Any] | None = getattr(module, "_apply_gate", None)
    if gate is None:
        return False
    x = torch.linspace(-20.0, 20.0, 64).view(2, 32)
    first, second = x.chunk(2, dim=-1)
    act_fn = module.get_submodule("act_fn")
    return not torch.allclose(gate(x), act_fn(first) * second)


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
