"""What is told of a comparison beside its figures: the model, the settings, and every site and layer of a recipe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelwise.comparison.fingerprints import processor_name, versions
from channelwise.comparison.task_questions import task_names
from channelwise.engine.plan import SiteRecord, WalkRecord
from channelwise.model.blocks import BlockList, find_blocks
from channelwise.model.images import Images
from channelwise.model.linears import linear_names
from channelwise.model.texts import Texts
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import grid_name
from channelwise.recipe import Recipe
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme

Facts = dict[str, Any]

NOTE_NAMES = {
    "t": "threshold",
    "t_over_max": "threshold_over_largest",
    "weights": "weight_format",
    "inputs": "input_format",
}
"""Notes of methods that get a name which says more where they stand alone; the others keep theirs."""

IN_EXPONENTS = "largest_exponent"
"""The note that the entry `exponents` says more fully."""


@dataclass(frozen=True)
class Settings:
    """What a comparison was asked for. None: what recipes, model or tasks say themselves, or nothing.

    data, perplexity: as they are called. tasks: their names; limit: documents of each.
    """

    data: str
    samples: int | None
    length: int | None
    seed: int
    device: str
    perplexity: str | None
    perplexity_length: int | None
    tasks: str | Sequence[str] | None = None
    limit: int | None = None

    def facts(self) -> Facts:
        """The same, and what it is measured with."""
        named = {**vars(self), "tasks": None if self.tasks is None else task_names(self.tasks)}
        return {**named, "threads": torch.get_num_threads(), "cpu": processor_name(), "versions": versions()}


def source_name(source: Any) -> str:
    """What a text, a set of images or a tensor is called: its file, or how much of it there is."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, torch.Tensor):
        return f"a tensor {list(source.shape)}"
    if isinstance(source, Texts | Images):
        return source.source
    return f"{len(source)} texts"


def model_facts(model: nn.Module, name: str) -> Facts:
    """name, architecture, parameters, and the linear layers and blocks that recipes are about."""
    blocks = find_blocks(model)
    return {
        "name": name,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linear_layers": sum(len(linear_names(block)) for block in blocks.modules(model)),
        "blocks": len(blocks.names),
    }


def recipe_facts(recipe: Recipe) -> Facts:
    """summary, paper, and the widths of weights and of the stream sites' inputs (None: floating point)."""
    inputs = recipe.stream.inputs
    return {
        "summary": recipe.summary,
        "paper": recipe.paper,
        "weights_bits": recipe.weights.bits,
        "inputs_bits": None if inputs is None else inputs.bits,
    }


def layer_facts(
    quantized: nn.Module, blocks: BlockList, record: WalkRecord, errors: Mapping[str, float | None]
) -> list[Facts]:
    """Every quantized layer in the model's order: where it is, how it is stored, what was chosen, what it lost.

    errors: the relative error by full name.
    """
    sites = {linear: site for site in record.sites for linear in site.linears}
    return [
        _layer(name, module, sites[name], block_number(name, blocks), errors.get(name))
        for name, module in quantized.named_modules()
        if isinstance(module, QuantizedLinear)
    ]


def site_facts(blocks: BlockList, record: WalkRecord) -> list[Facts]:
    """Every site in the order of the walk: the outliers of its input and what was chosen for it."""
    return [
        {
            "name": site.name,
            "linears": list(site.linears),
            "block": block_number(site.name, blocks),
            "kind": site.kind,
            "channels": site.channels,
            "tokens": site.tokens,
            "largest": site.largest,
            "median": site.median,
            "asymmetry": site.asymmetry,
            "notes": _renamed(site.notes),
        }
        for site in record.sites
    ]


def block_number(name: str, blocks: BlockList) -> int | None:
    """The number of the block that a module of this full name is in, from 0; None for one in no block (the head)."""
    inside = name.removeprefix(f"{blocks.prefix}.")
    return int(inside.partition(".")[0]) if inside != name else None


def weights_name(weights: WeightScheme) -> str:
    """`int4 row_group 128`, `e2m1 row`."""
    return f"{grid_name(weights.grid).lower()} {_granularity_name(weights.granularity)}"


def inputs_name(inputs: InputScheme | None) -> str | None:
    """`int8 static`, `e2m1 token`; None for inputs in floating point."""
    return None if inputs is None else f"{grid_name(inputs.grid).lower()} {inputs.kind}"


def _layer(name: str, layer: QuantizedLinear, site: SiteRecord, block: int | None, error: float | None) -> Facts:
    return {
        "name": name,
        "block": block,
        "site": site.name,
        "kind": site.kind,
        "shape": [layer.out_features, layer.in_features],
        "bits_per_weight": layer.bits_per_weight(),
        "weights": weights_name(layer.scheme.weights),
        "inputs": inputs_name(layer.scheme.inputs),
        "relative_error": error,
        "choices": _choices(layer, site, name),
    }


def _choices(layer: QuantizedLinear, site: SiteRecord, name: str) -> Facts:
    """The notes of the layer and of its site, and the exponents of its input channels."""
    notes = {**site.notes, **site.layers.get(name, {})}
    choices = _renamed({key: value for key, value in notes.items() if key != IN_EXPONENTS})
    exponents = layer.input_exponent
    if exponents is not None:
        choices["exponents"] = {"largest": int(exponents.max()), "mean": float(exponents.float().mean())}
    return choices


def _renamed(notes: Mapping[str, float | str]) -> Facts:
    """Under the names that reports show; a number that JSON does not have becomes None."""
    return {
        NOTE_NAMES.get(key, key): None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in notes.items()
    }


def _granularity_name(granularity: Granularity) -> str:
    return granularity.kind if granularity.group_size is None else f"{granularity.kind} {granularity.group_size}"
