"""What lets transformers load a channelwise checkpoint: AutoModel….from_pretrained works once `register` has run."""

from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from channelwise.checkpoint.format import QUANT_METHOD, CheckpointFormat, from_config
from channelwise.errors import InputError
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import EmbeddingScheme
from channelwise.runtime.settling import settle

_Scheme = TypeVar("_Scheme")


class ChannelwiseConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json as transformers keeps it. Raises InputError for what is not ours."""

    def __init__(self, **entries: Any) -> None:
        from_config(entries, "config.json")
        self.__dict__.update(entries)

    @property
    def format(self) -> CheckpointFormat:
        """The same, parsed."""
        return from_config(self.__dict__, "config.json")


class ChannelwiseQuantizer(HfQuantizer):
    """Puts empty quantized layers where the checkpoint has them, before transformers loads the weights."""

    requires_calibration = True
    quantization_config: ChannelwiseConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        apply_format(model, self.quantization_config.format)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from channelwise.model.attention import use_quantized_attention

        bits = self.quantization_config.format.attention_bits
        if bits is not None:
            use_quantized_attention(model, bits)
        settle(model)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: nn.Module) -> list[Any]:
        """None: a channelwise checkpoint has the names of the loaded model, so nothing is renamed or merged."""
        return []

    def is_serializable(self) -> bool:
        """Whether save_pretrained may write the model: it writes the same tensors under the same names."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes cannot be trained."""
        return False


def register() -> None:
    """Makes the checkpoints known to transformers; calling it again does nothing."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(ChannelwiseConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(ChannelwiseQuantizer)


def apply_format(model: nn.Module, data: CheckpointFormat) -> None:
    """Replaces the model's quantized layers, in place, by empty ones of the checkpoint's schemes, on the meta device.

    Layers that only the checkpoint's own model class has (a head, say) are left out.
    Raises InputError if the model has none of the layers.
    """
    from channelwise.model.experts import unfuse_experts
    from channelwise.model.linears import replace_module
    from channelwise.model.ties import forget_ties

    if data.unfused_experts:
        unfuse_experts(model)
    schemes = _schemes_in(model, data.schemes)
    if data.schemes and not schemes:
        raise InputError(
            f"{type(model).__name__} has no module {next(iter(data.schemes))!r}: "
            "load the checkpoint with the class in config.json's architectures"
        )
    for name, scheme in schemes.items():
        replace_module(model, name, QuantizedLinear(scheme, device="meta"))
    for name, table in _schemes_in(model, data.embeddings).items():
        replace_module(model, name, _empty_table(model.get_submodule(name), table))
    forget_ties(model)


def _empty_table(floating: nn.Module, scheme: EmbeddingScheme) -> QuantizedEmbedding:
    """In place of the module in floating point, with the dtype that the model is loaded in."""
    dtype = str(floating.weight.dtype).removeprefix("torch.")
    table = QuantizedEmbedding(replace(scheme, dtype=dtype), device="meta")
    table.padding_idx = getattr(floating, "padding_idx", None)
    return table


def _schemes_in(model: nn.Module, schemes: dict[str, _Scheme]) -> dict[str, _Scheme]:
    """The schemes under the names of this model, which may be the checkpoint's model with or without its head."""
    known = {name for name, _ in model.named_modules()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = {}
    for name, scheme in schemes.items():
        candidates = (name, name.removeprefix(prefix), prefix + name)
        here = next((candidate for candidate in candidates if candidate in known), None)
        if here is not None:
            found[here] = scheme
    return found
