"""The table of the input's tokens, quantized row by row: the E of LLM-FP4's E/W/A (arXiv 2310.16836)."""

import torch
from torch import nn

from channelwise.engine.plan import EmbeddingPlan, plain_grid
from channelwise.methods.format_search import best_rows
from channelwise.model.linears import replace_module
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import FloatGrid, Grid, grid_name
from channelwise.numerics.quantizer import Parameters, encode, parameters_of
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.scheme import EmbeddingScheme, WeightScheme

ROWS = 4096
"""Rows that are looked up at a time."""


def quantize_embedding(model: nn.Module, plan: EmbeddingPlan) -> dict[str, float | str]:
    """Replaces the model's token embedding in place, under all names that it has; notes of what was chosen.

    A model without one (of images, say) is left as it is, with no notes.
    """
    embedding = token_embedding(model)
    if embedding is None:
        return {}
    table = embedding_table(embedding)
    grid, parameters = _quantizer(table, plan)
    codes = encode(table, parameters, grid, ROW)
    dtype = str(embedding.weight.dtype).removeprefix("torch.")
    scheme = EmbeddingScheme(table.shape[0], table.shape[1], WeightScheme(grid, ROW), dtype)
    quantized = QuantizedEmbedding.from_parts(scheme, codes, parameters)
    quantized.padding_idx = embedding.padding_idx
    for name, module in list(model.named_modules(remove_duplicate=False)):
        # T5's encoder and decoder have modules of their own around one table.
        if isinstance(module, nn.Embedding) and module.weight is embedding.weight:
            replace_module(model, name, quantized)
    return {"weights": grid_name(grid), "rows": float(table.shape[0])}


def token_embedding(model: nn.Module) -> nn.Embedding | None:
    """The table of the input's tokens; None for a model without one."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        found = getter() if callable(getter) else None
    except NotImplementedError:  # some image models of transformers have none to name
        return None
    return found if isinstance(found, nn.Embedding) else None


@torch.no_grad()
def embedding_table(embedding: nn.Embedding) -> torch.Tensor:
    """What every token is turned into, float32 [tokens, channels]: a subclass may scale its rows (Gemma's does)."""
    ids = torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    return torch.cat([embedding(part).float() for part in ids.split(ROWS)])


def _quantizer(table: torch.Tensor, plan: EmbeddingPlan) -> tuple[Grid, Parameters]:
    floats = [grid for grid in plan.grids if isinstance(grid, FloatGrid)]
    if plan.search and floats:
        found = best_rows(table, floats)
        return found.grid, Parameters(found.scale)
    grid = plain_grid(plan.grids)
    return grid, parameters_of(table, grid, ROW)
