"""What a model does behind its blocks: its final norm and its head, run on hidden states that are already there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.engine.hooks import stand_ins
from channelwise.model.blocks import BlockList, with_hidden
from channelwise.model.linears import is_linear, weight_matrix
from channelwise.model.sites import Site
from channelwise.runtime.widening import wide_products

Batch = dict[str, torch.Tensor]


def head_name(model: nn.Module) -> str | None:
    """The full name of the linear layer that gives the logits over the vocabulary; None for models without one."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if head is None or not is_linear(head):
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def head_site(model: nn.Module, name: str) -> Site:
    """The head as a site of the whole model."""
    channels = weight_matrix(model.get_submodule(name)).shape[1]
    return Site(name, (name,), channels, "head", level=0, dependents=(), mixes_tokens=False, scope="")


@dataclass(frozen=True)
class Tail:
    """A model whose blocks do nothing; templates: the structure of every block's output."""

    model: nn.Module
    blocks: BlockList
    templates: tuple[Any, ...]

    def run(self, batch: Batch, hidden: torch.Tensor) -> Any:
        """The model's output on this batch, with `hidden` [batch, tokens, channels] as its last block's output."""
        forwards: dict[str, Callable[..., Any]] = {
            name: _returning(with_hidden(template, hidden))
            for name, template in zip(self.blocks.names, self.templates, strict=True)
        }
        with stand_ins(self.model, forwards), torch.no_grad(), wide_products(self.model):
            return self.model(**batch)


def _returning(output: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: output
