"""A quantized model in compressed-tensors' layout: transforms folded, layers compressed, everything else as it is.

Nothing of the original is needed: the norms that take over a transform are in the checkpoint, and a quantized layer
takes it over in the scales of its rows. What cannot be folded or expressed is refused, with the reason.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.checkpoint.compressed_tensors import layer_tensors, scheme_data
from channelwise.checkpoint.compressed_tensors_config import finer_steps, loadable, quantization_config, vllm_obstacles
from channelwise.checkpoint.exporting_folds import Folding, FoundSite, apply_folding, find_sites, plan_folding
from channelwise.checkpoint.exporting_twin import empty_copy, make_floating, probe_batch
from channelwise.checkpoint.shards import checkpoint_tensors
from channelwise.errors import InputError
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear

Layers = dict[str, QuantizedLinear]

NARROW = (torch.bfloat16, torch.float16)
"""What a float32 tensor is stored in where that holds it exactly."""

NO_SHIFT = {"outliertune": "none", "os_plus": "never"}
"""The setting `shift` of these methods that leaves the shift out."""


@dataclass(frozen=True)
class Exported:
    """A model to write: tensors by name, and what its config.json says of the quantization (None: nothing).

    model: in floating point, for its config, with the names that it is loaded under. notes: what a user should know.
    """

    model: Any
    tensors: dict[str, torch.Tensor]
    quantization: dict[str, Any] | None
    notes: tuple[str, ...]


def exportable(model: nn.Module, recipe: Mapping[str, Any]) -> str | None:
    """Why a quantized model cannot be written as compressed-tensors, or None if it can; the model is left alone."""
    try:
        to_compressed_tensors(copy.deepcopy(model), recipe)
    except InputError as error:
        return str(error)
    return None


@torch.no_grad()
def to_compressed_tensors(model: Any, recipe: Mapping[str, Any]) -> Exported:
    """The quantized model in compressed-tensors' layout; `model` is used up. recipe: what it was quantized by, as data.

    All of its floating-point numbers are float32, because the library computes in the model's dtype and would round
    our scales to it; numbers that 16 bits hold are stored so. Raises InputError where the format has no place for
    a layer, or a transform has no producer to go into.
    """
    layers: Layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    _check_model(model, layers)
    skeleton = empty_copy(model)
    for name in layers:
        _check_place(name, skeleton)
    tables = make_floating(model, layers, skeleton)
    notes = [f"{name} is written in floating point: the format has no quantized embeddings" for name in tables]
    schemes = {name: layer.scheme for name, layer in layers.items()}
    data = {name: _told(name, lambda name=name: scheme_data(schemes[name])) for name in layers}
    transformed = any(not layer.transform.is_identity for layer in layers.values())
    sites = find_sites(model, probe_batch(model), folds=transformed)
    transforms = {site.name: transform for site in sites if (transform := site_transform(site, layers)) is not None}
    folding = plan_folding(model, sites, transforms)
    _check_folding(layers, sites, folding, recipe)
    for site in sites:
        members = [name for name in site.linears if name in layers]
        _check_shared_inputs(site, [layers[name] for name in members])
        data |= {name: scheme_data(schemes[name], site.dimensions) for name in members}
    linears = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
    data = loadable(data)
    config, groups = quantization_config(data, linears)
    parts = {}
    for name, layer in layers.items():
        outputs = folding.producers.get(name, ChannelTransform())
        parts[name] = _told(
            name, lambda name=name, layer=layer, outputs=outputs: layer_tensors(layer, groups[name], outputs)
        )
    apply_folding(model, sites, _of_floating_modules(folding, layers))
    notes += finer_steps(data)
    if obstacles := vllm_obstacles(data):
        notes.append(f"vLLM has no kernel for {', '.join(obstacles)}; transformers loads it")
    return Exported(model, _all_tensors(model, parts), config, tuple(notes))


def site_transform(site: FoundSite, layers: Mapping[str, QuantizedLinear]) -> ChannelTransform | None:
    """The transform of the site's quantized layers, None where none is. Raises InputError where they differ."""
    found = [layers[name].transform for name in site.linears if name in layers]
    if not found:
        return None
    first = found[0]
    if any(not (_same(t.shift, first.shift) and _same(t.scale, first.scale)) for t in found[1:]):
        raise InputError(f"{site.name}: layers that read one input have different transforms of it")
    return first


def narrowed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """float32 tensors in 16 bits where these hold every number of them, the others as they are."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32:
            fitting = (dtype for dtype in NARROW if torch.equal(tensor.to(dtype).float(), tensor))
            result[name] = tensor.to(next(fitting, torch.float32))
    return result


def _check_model(model: Any, layers: Layers) -> None:
    from channelwise.model.experts import UnfusedExperts

    if not layers:
        raise InputError("there is no quantized linear layer; give a directory that `channelwise quantize` wrote")
    if any(isinstance(module, UnfusedExperts) for module in model.modules()):
        raise InputError("experts are one tensor for transformers, which compressed-tensors does not quantize there")
    attention = str(getattr(model.config, "_attn_implementation", ""))
    if attention.startswith("channelwise"):
        raise InputError(
            "the attention's own inputs are quantized, which the format has no place for; "
            "quantize without attention_bits"
        )


def _check_place(name: str, skeleton: nn.Module) -> None:
    module = skeleton.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise InputError(f"{name} is a {type(module).__name__}; compressed-tensors quantizes torch.nn.Linear only")


def _check_folding(layers: Layers, sites: tuple[FoundSite, ...], folding: Folding, recipe: Mapping[str, Any]) -> None:
    inside = {name for site in sites for name in site.linears}
    for name, layer in layers.items():
        if name not in inside and not layer.transform.is_identity:
            raise InputError(f"{name}: its input transform cannot be folded, it belongs to no block")
    if not folding.reasons:
        return
    name, reason = next(iter(folding.reasons.items()))
    site = next(site for site in sites if site.name == name)
    others = f" (and {len(folding.reasons) - 1} more)" if len(folding.reasons) > 1 else ""
    hint = _hint(site.kind, recipe, only_shift=name in folding.sites)
    raise InputError(f"{name}{others}: its input transform cannot be folded, {reason}{hint}")


def _hint(kind: str, recipe: Mapping[str, Any], *, only_shift: bool) -> str:
    """The setting of the recipe that leaves out what cannot be folded, if there is one."""
    part = dict(recipe.get(kind) or {})
    method = dict(part.get("method") or {})
    if only_shift and method.get("name") in NO_SHIFT:
        return f"; quantize with --set {kind}.method.shift={NO_SHIFT[method['name']]}"
    per_channel = dict(part.get("inputs") or {}).get("granularity") == "channel"
    replaceable = set(method) == {"name"} and not per_channel and not only_shift
    return f"; quantize with --set {kind}.method.name=none" if replaceable else ""


def _check_shared_inputs(site: FoundSite, layers: list[QuantizedLinear]) -> None:
    """Layers that runtimes fuse (q, k, v; gate, up) must have one quantizer of their input."""
    first = layers[0] if layers else None
    for layer in layers[1:]:
        assert first is not None
        same = layer.scheme.inputs == first.scheme.inputs
        if not (
            same and _same(layer.input_step, first.input_step) and _same(layer.input_zero_point, first.input_zero_point)
        ):
            raise InputError(f"{site.name}: layers that read one input quantize it differently")


def _of_floating_modules(folding: Folding, layers: Layers) -> Folding:
    """Without the producers that are quantized: these take it over in their scales."""
    return Folding({name: t for name, t in folding.producers.items() if name not in layers}, folding.sites)


def _all_tensors(model: Any, parts: Mapping[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    tensors = {
        name: tensor for name, tensor in checkpoint_tensors(model).items() if name.rpartition(".")[0] not in parts
    }
    for name, own in parts.items():
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in own.items()}
    return narrowed(tensors)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _told(name: str, make: Any) -> Any:
    """What `make` gives; its reason for refusing gets the layer's name."""
    try:
        return make()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
