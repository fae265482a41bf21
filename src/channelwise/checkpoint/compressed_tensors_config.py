"""The `quantization_config` of a compressed-tensors directory: which layers are quantized how, and who can run it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

from channelwise.checkpoint.compressed_tensors import PACKED

GroupData = dict[str, Any]
"""A config group without its targets, as `compressed_tensors.scheme_data` gives it."""


def loadable(layers: Mapping[str, GroupData]) -> dict[str, GroupData]:
    """The layers' groups such that transformers loads them.

    It does not load packed zero points, unless it dequantizes at once, and that it does by one group for all layers.
    Where there are several groups, scales of rows or of groups along them become those of blocks one row high: the same
    numbers, with zero points in whole bytes.
    """
    if len({json.dumps(data, sort_keys=True) for data in layers.values()}) == 1 and not _has_inputs(layers):
        return dict(layers)
    return {name: _in_blocks(data) if _packs_zero_points(data) else data for name, data in layers.items()}


def quantization_config(
    layers: Mapping[str, GroupData], linears: Sequence[str]
) -> tuple[dict[str, Any], dict[str, "QuantizationScheme"]]:
    """The entry of config.json, JSON-able, and every layer's scheme.

    layers: config group by full module name, as `loadable` gives them; linears: all torch.nn.Linear of the model. Those
    that are not quantized are listed under `ignore`.
    """
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, QuantizationStatus

    groups: dict[str, list[str]] = {}
    for name, data in layers.items():
        groups.setdefault(json.dumps(data, sort_keys=True), []).append(name)
    others = [name for name in linears if name not in layers]
    schemes: dict[str, QuantizationScheme] = {}
    config_groups: dict[str, QuantizationScheme | list[str]] = {}
    for index, (key, names) in enumerate(groups.items()):
        rest = [name for name in linears if name not in names]
        targets = ["Linear"] if len(groups) == 1 else _patterns(names, rest)
        scheme = QuantizationScheme(targets=targets, **json.loads(key))
        config_groups[f"group_{index}"] = scheme
        schemes |= dict.fromkeys(names, scheme)
    formats = {str(data["format"]) for data in layers.values()}
    config = QuantizationConfig(
        config_groups=config_groups,
        format=formats.pop() if len(formats) == 1 else CompressionFormat.mixed_precision.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=_patterns(others, list(layers)),
    )
    data = config.model_dump(mode="json")
    if any(_packs_zero_points(layer) for layer in layers.values()):
        data["dequantize"] = True
    return data, schemes


def vllm_obstacles(layers: Mapping[str, GroupData]) -> tuple[str, ...]:
    """What vLLM's kernels for compressed-tensors do not take, by the format's documentation; nothing was run in it."""
    found = [obstacle for data in layers.values() for obstacle in _obstacles(data)]
    return tuple(dict.fromkeys(found))


def finer_steps(layers: Mapping[str, GroupData]) -> tuple[str, ...]:
    """Where the library's quantizer of inputs is another than ours by more than eight bits show.

    It divides a token's largest number by (2^b − 1) / 2, ours by 2^(b − 1) − 1.
    """
    inputs = [data["input_activations"] for data in layers.values() if data["input_activations"] is not None]
    widths = sorted({args["num_bits"] for args in inputs if args["dynamic"] and args["symmetric"]})
    return tuple(
        f"{bits}-bit inputs per token have steps {100 / (2**bits - 1):.1f} % smaller there, so results differ a little"
        for bits in widths
        if bits < 8
    )


def _has_inputs(layers: Mapping[str, GroupData]) -> bool:
    return any(data["input_activations"] is not None for data in layers.values())


def _packs_zero_points(data: GroupData) -> bool:
    weights = data["weights"]
    return data["format"] == PACKED and not weights["symmetric"] and weights["strategy"] in ("channel", "group")


def _in_blocks(data: GroupData) -> GroupData:
    """The same with blocks one row high in the place of groups."""
    weights = {**data["weights"], "strategy": "block", "block_structure": [1, data["weights"]["group_size"]]}
    del weights["group_size"]
    return {**data, "weights": weights}


def _obstacles(data: GroupData) -> list[str]:
    weights, inputs = data["weights"], data["input_activations"]
    bits = weights["num_bits"]
    found = []
    if weights["strategy"] == "block":
        found.append("groups along columns" if weights["block_structure"][1] == 1 else "groups of both directions")
    if inputs is None:
        return found + ([f"{bits}-bit weights"] if bits not in (4, 8) else [])
    if (bits, inputs["num_bits"]) != (8, 8):
        found.append(f"{bits}-bit weights with {inputs['num_bits']}-bit inputs")
    elif data["format"] == PACKED or not weights["symmetric"]:
        found.append("asymmetric 8-bit weights with 8-bit inputs")
    if inputs["strategy"] == "group":
        found.append("one input scale per row of a flattened batch")
    return found


def _patterns(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Targets that match the names and none of the others: one for the same layer of all blocks where that is right."""
    foreign = {_in_any_block(name) for name in others}
    shared: dict[str, list[str]] = {}
    for name in names:
        shared.setdefault(_in_any_block(name), []).append(name)
    targets = []
    for pattern, members in shared.items():
        alone = len(members) == 1 or pattern in foreign
        targets += members if alone else [f"re:{pattern}$"]
    return targets


def _in_any_block(name: str) -> str:
    """The name as a regular expression in which every number stands for any."""
    return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))
