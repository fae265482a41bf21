"""The execution of a weight that a search only tries: on a processor, with its whole numbers as bytes.

Bytes take no time to pack, and products of bytes are several times as fast as those in float32.
"""

import torch

from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import Grid, IntegerGrid
from channelwise.numerics.inputs import largest_code
from channelwise.numerics.quantizer import Parameters, encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.execution import Execution, LinearParts
from channelwise.runtime.packed import takes_integers
from channelwise.runtime.preparing import prepare
from channelwise.runtime.products import onednn_is_exact
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme, is_asymmetric
from channelwise.runtime.whole import LARGEST_INT8, WholeWeight, whole_weight

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
    return byte_execution(whole, bias, transform, inputs, step, zero_point)


def byte_execution(
    weight: WholeWeight,
    bias: torch.Tensor | None,
    transform: ChannelTransform,
    inputs: InputScheme,
    step: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    exponents: torch.Tensor | None = None,
) -> Execution:
    """The layer of a weight of whole numbers in int8, without an offset; the rest as in `LinearParts`."""
    outputs, columns = weight.values.shape
    scheme = LinearScheme(
        in_features=columns,
        out_features=outputs,
        weights=BYTES,
        inputs=inputs,
        bias=bias is not None,
        shift=transform.shift is not None,
        scale=transform.scale is not None,
        exponents=exponents is not None,
    )
    # Some architectures keep their weights transposed. In bytes a difference is right as soon as it is taken unsigned.
    stored = weight.values.contiguous().sub(BYTES.grid.lowest).view(torch.uint8)
    scale = Parameters(weight.scale.float()[:, None])
    return prepare(LinearParts(scheme, stored, scale, bias, transform, step, zero_point, exponents))


def integers_are_fast() -> bool:
    """Whether this processor has products of bytes that are exact, the kernels' own or torch's."""
    return takes_integers() or onednn_is_exact()


def fits_bytes(grid: Grid, largest_exponent: int) -> bool:
    """Whether inputs of this grid are whole numbers in bytes, with exponents per channel from 0 to the largest one."""
    limit = 2**8 - 1 if is_asymmetric(grid) else LARGEST_INT8
    return largest_code(grid) * 2**largest_exponent <= limit
