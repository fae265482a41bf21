"""The execution of a weight that a search only tries: on a processor, with its whole numbers as bytes.

Bytes take no time to pack, and products of bytes are several times as fast as those in float32.
"""

import torch

from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import Parameters, encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.execution import Execution, LinearParts
from channelwise.runtime.packed import takes_integers
from channelwise.runtime.preparing import prepare
from channelwise.runtime.products import onednn_is_exact
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme
from channelwise.runtime.whole import whole_weight

BYTES = WeightScheme(IntegerGrid(8), ROW)


def trial_execution(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    weights: WeightScheme,
    transform: ChannelTransform,
    inputs: InputScheme,
    step: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
) -> Execution | None:
    """The layer of a weight with min-max ranges, rounded to nearest; None where products in float32 are as good.

    weight: the transformed one, float32 [out_features, in_features]. bias: the final one, float32 [out_features]. step,
    zero_point: float32 [], of static inputs. None for weights in groups or of more than 8 bits signed, on a GPU, and on
    processors without fast products of bytes.
    """
    if weight.device.type != "cpu" or not integers_are_fast():
        return None
    grid, granularity = weights.grid, weights.granularity
    if granularity.kind not in ("tensor", "row"):
        return None
    parameters = parameters_of(weight, grid, granularity)
    codes = encode(weight, parameters, grid, granularity)
    whole = whole_weight(codes, parameters, grid, granularity, with_offset=False)
    if whole is None or whole.values.dtype != torch.int8:
        return None
    scheme = LinearScheme(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        weights=BYTES,
        inputs=inputs,
        bias=bias is not None,
        shift=transform.shift is not None,
        scale=transform.scale is not None,
    )
    stored = (whole.values.to(torch.int16) - BYTES.grid.lowest).to(torch.uint8)
    scale = Parameters(whole.scale.float()[:, None])
    return prepare(LinearParts(scheme, stored, scale, bias, transform, step, zero_point, None))


def integers_are_fast() -> bool:
    """Whether this processor has products of bytes that are exact, the kernels' own or torch's."""
    return takes_integers() or onednn_is_exact()
