"""Mixtures of experts whose weights are 3-D parameters, made into lists of experts with linear layers."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.fused_experts import (
    Gating,
    Layout,
    Matrix,
    expert_weights,
    is_fused,
    linear_weights,
    may_be_linears,
    own_parameters,
    proven_layout,
)
from channelwise.model.linears import is_linear, replace_module

Activation = Callable[[torch.Tensor], torch.Tensor]


class Expert(nn.Module):
    """One expert: down_proj(act_fn(gate_proj(x)) * up_proj(x)), with another gating, or without a gate."""

    def __init__(
        self,
        gate_proj: nn.Linear | None,
        up_proj: nn.Linear,
        down_proj: nn.Linear,
        act_fn: Activation | None,
        gating: Gating | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.act_fn, self.gating = act_fn, gating

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden] to the same shape."""
        return self.down_proj(self._inner(x))

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is not None and self.gating is not None:
            return self.gating(self.gate_proj(x), self.up_proj(x))
        assert self.act_fn is not None
        if self.gate_proj is None:
            return self.act_fn(self.up_proj(x))
        return self.act_fn(self.gate_proj(x)) * self.up_proj(x)


class UnfusedExperts(nn.ModuleList):
    """The experts of one layer as a list of modules; the same outputs as the fused module that it replaces."""

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__(experts)
        self.num_experts = len(self)

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


class UnfusedParts(UnfusedExperts):
    """The same, called with the inputs of all experts behind each other, as many for each."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """hidden_states: [experts * tokens, hidden] to the same shape.

        Rows of zeros are tokens that went to other experts; they stay zero without being computed.
        """
        parts = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
        total = torch.zeros_like(parts)
        for index, part in enumerate(parts):
            tokens = part.any(dim=-1).nonzero()[:, 0]
            if len(tokens):
                total[index, tokens] = self[index](part[tokens]).to(total.dtype)
        return total.view_as(hidden_states)


class LinearExpert(nn.Module):
    """One expert that is no more than a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, in] to [tokens, out]."""
        return self.linear(x)


class UnfusedLinears(UnfusedExperts):
    """The same for linear layers side by side, called with inputs sorted by expert."""

    def forward(self, inputs: torch.Tensor, expert_size: list[int]) -> torch.Tensor:  # type: ignore[override]
        """inputs: [tokens, in]; expert_size: how many of them each expert gets. Returns [tokens, out]."""
        parts = inputs.split(expert_size, dim=0)
        return torch.cat([self[index](part) for index, part in enumerate(parts) if len(part)])


def unfuse_experts(model: nn.Module) -> tuple[str, ...]:
    """Replaces every module of fused experts by an UnfusedExperts, in place; returns their names. Meta stays meta.

    The new weights are views of the old parameters, which stay in memory until the last of them is gone. Every layout
    is proven by trying. Raises InputError, before anything is changed, for a fused module that computes otherwise.
    """
    unfused: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not name or not (is_fused(module) or may_be_linears(module)):
            continue
        layout = proven_layout(module, _unfused)
        if layout is not None:
            unfused[name] = _unfused(module, layout)
        elif is_fused(module):
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in own_parameters(module).items())
            raise InputError(
                f"experts of {name} ({type(module).__name__}: {shapes}) cannot be taken apart: "
                "linear layers of the known layouts do not compute the same"
            )
    for name, module in unfused.items():
        replace_module(model, name, module)
    return tuple(unfused)


def sibling_prefixes(block: nn.Module) -> list[tuple[str, ...]]:
    """Prefixes ("mlp.experts.0.", ...) of like modules that hold linear layers, one tuple for each list of them."""
    groups = []
    for name, module in block.named_modules():
        children = dict(module.named_children())
        if not isinstance(module, nn.ModuleList | nn.ModuleDict) or len(children) < 2:
            continue
        like = len({type(child) for child in children.values()}) == 1
        if like and all(not is_linear(child) and any(map(is_linear, child.modules())) for child in children.values()):
            groups.append(tuple(f"{name}.{child}." if name else f"{child}." for child in children))
    return groups


def expert_prefixes(block: nn.Module) -> list[tuple[str, ...]]:
    """Those of `sibling_prefixes` between which a router chooses: beside them stands a matrix of a row for each.

    Beside: below the module that holds the list, but not in it. Other like modules get every token.
    """
    groups = sibling_prefixes(block)
    inside = tuple(prefix for group in groups for prefix in group)
    return [group for group in groups if _is_routed(block, group, inside)]


def owner_of(group: tuple[str, ...]) -> str:
    """What the names of everything below the module that holds the list of these experts begin with."""
    owner = group[0].removesuffix(".").rpartition(".")[0].rpartition(".")[0]
    return f"{owner}." if owner else ""


def _is_routed(block: nn.Module, group: tuple[str, ...], inside: tuple[str, ...]) -> bool:
    listed = block.get_submodule(group[0].removesuffix(".").rpartition(".")[0])
    return isinstance(listed, UnfusedExperts) or any(
        value.ndim == 2 and value.shape[0] == len(group)
        for name, value in block.named_parameters()
        if name.startswith(owner_of(group)) and not name.startswith(inside)
    )


def _unfused(module: nn.Module, layout: Layout) -> nn.Module:
    unfused: UnfusedExperts
    if layout.call == "sizes":
        unfused = UnfusedLinears(LinearExpert(_linear((weight, None))) for weight in linear_weights(module, layout))
    else:
        gating = Gating.of(module, layout) if layout.gate == "own" else None
        act_fn = None if layout.gate == "own" else module.act_fn
        experts = [
            Expert(
                None if weights.gate is None else _linear(weights.gate),
                _linear(weights.up),
                _linear(weights.down),
                act_fn,  # type: ignore[arg-type]
                gating,
            )
            for weights in expert_weights(module, layout)
        ]
        unfused = UnfusedParts(experts) if layout.call == "parts" else UnfusedExperts(experts)
    unfused.train(module.training)
    return unfused


def _linear(matrix: Matrix) -> nn.Linear:
    weight, bias = matrix
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
