"""How much an error at each output of a layer matters to the whole model: the diagonal Fisher information.

LLM-FP4 (arXiv 2310.16836, §3.2) weighs a layer's output error by the squared gradient of the loss. The loss is taken
under the model's own predictions, which is what makes the squared gradient the Fisher information: no label is needed.
Of that matrix [tokens, outputs] only the marginals are kept (docs/architecture.md says what that costs and saves).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from channelwise.engine.sampling import TokenSampler
from channelwise.methods.site import Importance
from channelwise.model.calls import hidden_position
from channelwise.runtime.widening import wide_products

Batch = dict[str, torch.Tensor]

FEW_CLASSES = 16
"""Up to so many classes the expectation over the predicted label is computed, beyond it is drawn `DRAWS` times."""
DRAWS = 4


def output_importance(
    model: nn.Module,
    first_block: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    sampler: TokenSampler,
    seed: int,
) -> dict[str, Importance]:
    """The importance of the named linear layers' outputs, at the sampler's tokens of every batch, in order.

    What is kept is the squared gradients' sum for each sampled token and for each output: two vectors a layer, whose
    product stands for the whole matrix. A layer that no token reached, or whose gradients are all 0, is missing.
    """
    # On the device that draws, so that nothing is carried there; each kind of device draws its own numbers.
    generator = torch.Generator(next(iter(batches[0].values())).device).manual_seed(seed)
    tokens: dict[str, list[torch.Tensor]] = {}
    outputs: dict[str, torch.Tensor] = {}
    for index, batch in enumerate(batches):
        for name, square in _squared_gradients(model, first_block, names, batch, generator).items():
            tokens.setdefault(name, []).append(sampler.chosen(index, square).sum(dim=1))
            outputs[name] = outputs.get(name, 0) + square.flatten(0, -2).sum(dim=0)
    joined = {name: torch.cat(parts) for name, parts in tokens.items()}
    return {
        name: Importance(joined[name] / joined[name].mean(), outputs[name] / outputs[name].mean())
        for name in joined
        if float(joined[name].sum()) > 0 and float(outputs[name].sum()) > 0
    }


def _squared_gradients(
    model: nn.Module, first_block: nn.Module, names: Sequence[str], batch: Batch, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Σ weight · gradient², float32 in the shape of each layer's output."""
    outputs: dict[str, torch.Tensor] = {}
    with torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(_grown_from(first_block))
        for name in names:
            stack.enter_context(_kept_output(model.get_submodule(name), name, outputs))
        with wide_products(model):
            result = model(**batch)
        squares = {name: torch.zeros_like(output, dtype=torch.float32) for name, output in outputs.items()}
        for weight, loss in _losses(result, generator):
            gradients = torch.autograd.grad(loss, list(outputs.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    squares[name].addcmul_(gradient.float(), gradient.float(), value=weight)
    return squares


def _losses(result: Any, generator: torch.Generator) -> Iterator[tuple[float, torch.Tensor]]:
    """Weights and losses whose squared gradients add up to the Fisher information of the model's answer.

    Logits are a categorical distribution each; anything else (hidden states, a number) is the mean of a normal one.
    There are none where the answer is not finite: the walk tells at which layer that begins.
    """
    logits = getattr(result, "logits", None)
    if logits is None or logits.shape[-1] == 1:
        answers = _answers(result)
        for _ in range(DRAWS):
            noise = [torch.randn(answer.shape, generator=generator, device=answer.device) for answer in answers]
            parts = [(draw * answer).sum() for draw, answer in zip(noise, answers, strict=True)]
            yield 1.0 / DRAWS, torch.stack(parts).sum()
        return
    likelihoods = torch.log_softmax(logits.float(), dim=-1).flatten(0, -2)
    shares = likelihoods.detach().exp()
    if logits.dim() == 2 and shares.shape[-1] <= FEW_CLASSES:
        for index in range(shares.shape[-1]):
            # Items of a batch do not reach each other's tokens, so √p in the sum is p on the squared gradient.
            yield 1.0, -(shares[:, index].sqrt() * likelihoods[:, index]).sum()
        return
    for _ in range(DRAWS if bool(torch.isfinite(shares).all()) else 0):
        yield 1.0 / DRAWS, -likelihoods.gather(1, _drawn(shares, generator)).sum()


def _drawn(shares: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One class for each row of probabilities [rows, classes], int64 [rows, 1].

    What torch.multinomial does for one draw, which then looks at the device whether they are probabilities.
    """
    waiting = torch.empty_like(shares).exponential_(1, generator=generator)
    return (shares / waiting).argmax(dim=-1, keepdim=True)


def _answers(result: Any) -> list[torch.Tensor]:
    """What a model without class probabilities answers, float32: its last hidden state, else all that it puts out."""
    hidden = getattr(result, "last_hidden_state", None)
    found = [hidden] if hidden is not None else list(result.values() if isinstance(result, dict) else result)
    return [part.float() for part in found if isinstance(part, torch.Tensor) and part.is_floating_point()]


@contextmanager
def _kept_output(module: nn.Module, name: str, outputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Keeps the module's output of the forward passes meanwhile."""
    handle = module.register_forward_hook(lambda _, __, output: outputs.__setitem__(name, output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _grown_from(block: nn.Module) -> Iterator[None]:
    """Lets gradients begin at the block's input: the parameters need none."""

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        position = hidden_position(args, kwargs)
        hidden = args[position] if isinstance(position, int) else kwargs[position]
        hidden.requires_grad_(True)

    handle = block.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
