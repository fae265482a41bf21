"""The native format's part of config.json: which modules are quantized linear layers, and how."""

from dataclasses import dataclass, field
from typing import Any

from channelwise.errors import InputError
from channelwise.runtime.scheme import LinearScheme, scheme_from_dict, scheme_to_dict

QUANT_METHOD = "channelwise"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointFormat:
    """What a checkpoint says about its quantization.

    schemes: full module name to scheme. recipe: what the model was quantized by, as data.
    unfused_experts: names of the modules whose fused expert weights were taken apart into linear layers.
    attention_bits: width of the inputs of the attention's two matrix products, None for floating point.
    """

    schemes: dict[str, LinearScheme]
    recipe: dict[str, Any] = field(default_factory=dict)
    unfused_experts: tuple[str, ...] = ()
    attention_bits: int | None = None


def to_config(data: CheckpointFormat) -> dict[str, Any]:
    """The `quantization_config` of config.json, JSON-able; modules of one scheme stand together."""
    groups: dict[LinearScheme, list[str]] = {}
    for name, scheme in data.schemes.items():
        groups.setdefault(scheme, []).append(name)
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "recipe": data.recipe,
        "linears": [{"scheme": scheme_to_dict(scheme), "modules": names} for scheme, names in groups.items()],
        "unfused_experts": list(data.unfused_experts),
        "attention_bits": data.attention_bits,
    }


def from_config(config: dict[str, Any], where: str) -> CheckpointFormat:
    """The inverse of `to_config`. Raises InputError, naming the file `where`, for anything else."""
    if config.get("quant_method") != QUANT_METHOD:
        raise InputError(f"{where} is not of a channelwise checkpoint (quant_method {config.get('quant_method')!r})")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where} has format version {version!r}, this channelwise reads {FORMAT_VERSION}: install one that fits"
        )
    try:
        schemes = {
            str(name): scheme
            for group in config["linears"]
            for scheme in [scheme_from_dict(group["scheme"])]
            for name in group["modules"]
        }
        experts, bits = tuple(config["unfused_experts"]), config["attention_bits"]
        return CheckpointFormat(schemes, dict(config["recipe"]), experts, bits)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where} has a damaged quantization_config ({problem}): quantize the model again") from error
