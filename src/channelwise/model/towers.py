"""What a model has beside its blocks: vision towers, projectors, poolers, whose layers are not quantized."""

from collections.abc import Iterator

from torch import nn

from channelwise.model.blocks import BlockList
from channelwise.model.linears import is_linear
from channelwise.runtime.embedding import QuantizedEmbedding


def left_floating(model: nn.Module, blocks: BlockList) -> tuple[str, ...]:
    """Names of the outermost modules beside the blocks that multiply by matrices of weights, in the model's order.

    These stay in floating point: a vision tower with its projector, the pooler of an encoder, a head of classes. The
    layer that gives the logits over the vocabulary is not among them, nor are embeddings: recipes can name those.
    """
    return tuple(_beside(model, "", blocks.prefix, _output_layer(model)))


def _beside(module: nn.Module, name: str, blocks: str, head: nn.Module | None) -> Iterator[str]:
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if full == blocks or child is head:
            continue
        if blocks.startswith(f"{full}.") or any(part is head for part in child.modules()):
            yield from _beside(child, full, blocks, head)
        elif any(map(_has_matrix, child.modules())):
            yield full


def _has_matrix(module: nn.Module) -> bool:
    """A linear layer, or a module with a matrix of its own (Gemma 3's projector)."""
    if isinstance(module, nn.Embedding | QuantizedEmbedding):
        return False
    return is_linear(module) or any(parameter.ndim == 2 for parameter in module.parameters(recurse=False))


def _output_layer(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if callable(getter) else None
    return found if isinstance(found, nn.Module) else None
