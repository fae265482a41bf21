"""The native format's part of config.json: which modules are quantized linear layers and embeddings, and how."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from channelwise.errors import InputError
from channelwise.runtime.scheme import (
    EmbeddingScheme,
    LinearScheme,
    embedding_from_dict,
    embedding_to_dict,
    scheme_from_dict,
    scheme_to_dict,
)

QUANT_METHOD = "channelwise"
FORMAT_VERSION = 2
WITHOUT_EMBEDDINGS = 1
"""The version before 2: no embeddings, no exponents, inputs on integer grids. It is still read."""

_Scheme = TypeVar("_Scheme", bound=Hashable)


@dataclass(frozen=True)
class CheckpointFormat:
    """What a checkpoint says about its quantization.

    schemes, embeddings: full module name to scheme. recipe: what the model was quantized by, as data.
    unfused_experts: names of the modules whose fused expert weights were taken apart into linear layers.
    attention_bits: width of the inputs of the attention's two matrix products, None for floating point.
    """

    schemes: dict[str, LinearScheme]
    recipe: dict[str, Any] = field(default_factory=dict)
    unfused_experts: tuple[str, ...] = ()
    attention_bits: int | None = None
    embeddings: dict[str, EmbeddingScheme] = field(default_factory=dict)


def to_config(data: CheckpointFormat) -> dict[str, Any]:
    """The `quantization_config` of config.json, JSON-able; modules of one scheme stand together."""
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "recipe": data.recipe,
        "linears": _grouped(data.schemes, scheme_to_dict),
        "embeddings": _grouped(data.embeddings, embedding_to_dict),
        "unfused_experts": list(data.unfused_experts),
        "attention_bits": data.attention_bits,
    }


def from_config(config: dict[str, Any], where: str) -> CheckpointFormat:
    """The inverse of `to_config`. Raises InputError, naming the file `where`, for anything else."""
    if config.get("quant_method") != QUANT_METHOD:
        raise InputError(f"{where} is not of a channelwise checkpoint (quant_method {config.get('quant_method')!r})")
    version = config.get("format_version")
    if version not in (WITHOUT_EMBEDDINGS, FORMAT_VERSION):
        raise InputError(
            f"{where} has format version {version!r}, this channelwise reads {FORMAT_VERSION}: install one that fits"
        )
    try:
        schemes = _ungrouped(config["linears"], scheme_from_dict)
        tables = [] if version == WITHOUT_EMBEDDINGS else config["embeddings"]
        experts, bits = tuple(config["unfused_experts"]), config["attention_bits"]
        embeddings = _ungrouped(tables, embedding_from_dict)
        return CheckpointFormat(schemes, dict(config["recipe"]), experts, bits, embeddings)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where} has a damaged quantization_config ({problem}): quantize the model again") from error


def _grouped(schemes: dict[str, _Scheme], to_dict: Callable[[_Scheme], dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[_Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    return [{"scheme": to_dict(scheme), "modules": names} for scheme, names in groups.items()]


def _ungrouped(groups: list[dict[str, Any]], from_dict: Callable[[dict[str, Any]], _Scheme]) -> dict[str, _Scheme]:
    return {
        str(name): scheme for group in groups for scheme in [from_dict(group["scheme"])] for name in group["modules"]
    }
