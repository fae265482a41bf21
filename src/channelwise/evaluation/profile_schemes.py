"""Plain ways to quantize a layer, whose errors a profile shows: no transform, no search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from channelwise.engine.quantize import plain_input, plain_layer, quantize_linear
from channelwise.methods.site import ChannelStatistics
from channelwise.model.sites import Site
from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme


@dataclass(frozen=True)
class PlainScheme:
    """Rounding to nearest with min-max ranges and no transform. inputs: None leaves them in floating point."""

    weights: WeightScheme
    inputs: InputScheme | None


PLAIN_SCHEMES: Mapping[str, PlainScheme] = {
    "W8A8 static": PlainScheme(WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static")),
    "W8A8 per token": PlainScheme(WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "token")),
    "W4 g128": PlainScheme(WeightScheme(IntegerGrid(4, symmetric=False), Granularity("row_group", 128)), None),
}
"""By the names that pages show: 8 bits with one static scale of the inputs, with one per token; 4-bit weights alone."""


def plain_layers(
    block: nn.Module, sites: Sequence[Site], statistics: Mapping[str, ChannelStatistics]
) -> dict[str, dict[str, QuantizedLinear]]:
    """Every layer by every plain scheme. statistics: by site; sites that no token reached have none, and no layers."""
    identity = ChannelTransform()
    return {
        label: {
            linear: quantize_linear(
                module := block.get_submodule(linear),
                identity,
                plain_layer(
                    module, identity, scheme.weights, plain_input(identity, statistics[site.name], scheme.inputs)
                ),
            )
            for site in sites
            if site.name in statistics
            for linear in site.linears
        }
        for label, scheme in PLAIN_SCHEMES.items()
    }
