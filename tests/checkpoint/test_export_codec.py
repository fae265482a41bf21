"""One layer as compressed-tensors stores it: the same numbers, given back by that library's own code."""

from typing import Any

import pytest
import torch

from channelwise.checkpoint.compressed_tensors import (
    compressed,
    decoded,
    integer_weight,
    layer_tensors,
    rows_divided,
    scheme_data,
)
from channelwise.checkpoint.compressed_tensors_config import finer_steps, loadable, quantization_config, vllm_obstacles
from channelwise.errors import InputError
from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.inputs import token_codes
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme, is_asymmetric
from tests.checkpoint.exports import need_library

need_library()

ROWS, COLUMNS = 24, 32
ROUNDING = torch.finfo(torch.float32).eps
GRANULARITIES = [TENSOR, ROW, COLUMN, Granularity("row_group", 8), Granularity("column_group", 8)]
INTEGERS = [IntegerGrid(bits, symmetric) for bits in range(2, 9) for symmetric in (True, False)]
FLOATS = [FloatGrid(1, 2), FloatGrid(2, 1), FloatGrid(3, 0), FloatGrid(1, 6)]


def layer_of(grid: Grid, granularity: Granularity, inputs: InputScheme | None = None, **parts: Any) -> QuantizedLinear:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    parameters = parameters_of(weight, grid, granularity)
    bias = parts.get("bias") is not None
    scheme = LinearScheme(COLUMNS, ROWS, WeightScheme(grid, granularity), inputs, bias=bias)
    return QuantizedLinear.from_parts(scheme, encode(weight, parameters, grid, granularity), parameters, **parts)


def library_scheme(layer: QuantizedLinear) -> Any:
    """The layer's scheme in the library's terms, in a model of this layer alone."""
    return quantization_config(loadable({"layer": scheme_data(layer.scheme)}), ["layer"])[1]["layer"]


def decompressed(tensors: dict[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(scheme.format).decompress(tensors, scheme)["weight"]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.kind)
@pytest.mark.parametrize("grid", [*INTEGERS, *FLOATS], ids=str)
def test_the_library_gives_back_every_number_of_a_weight(grid: Grid, granularity: Granularity) -> None:
    layer = layer_of(grid, granularity)
    scheme = library_scheme(layer)
    weight = integer_weight(layer.codes(), layer.weight_parameters, layer.scheme.weights)
    assert torch.equal(decoded(weight), layer.dequantized_weight())
    assert torch.equal(decompressed(compressed(weight, scheme), scheme), layer.dequantized_weight())


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_take_their_width(bits: int) -> None:
    layer = layer_of(IntegerGrid(bits), ROW)
    packed = layer_tensors(layer, library_scheme(layer), ChannelTransform())["weight_packed"]
    assert (packed.dtype, packed.shape) == (torch.int32, (ROWS, COLUMNS * bits // 32))


def test_eight_bits_with_quantized_inputs_are_whole_bytes() -> None:
    layer = layer_of(IntegerGrid(8), ROW, InputScheme(IntegerGrid(8), "static"), input_step=torch.tensor(0.1))
    tensors = layer_tensors(layer, library_scheme(layer), ChannelTransform())
    assert tensors["weight"].dtype == torch.int8 and tensors["weight_scale"].shape == (ROWS, 1)
    assert torch.equal(tensors["weight"].to(torch.int16), layer.codes())
    assert torch.equal(tensors["input_scale"], torch.tensor([0.1]))
    assert "input_zero_point" not in tensors and "weight_zero_point" not in tensors


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_input_gets_the_same_values(bits: int, symmetric: bool) -> None:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    grid, step = IntegerGrid(bits, symmetric), torch.tensor(0.07)
    zero_point = None if symmetric else torch.tensor(5.0)
    inputs = InputScheme(grid, "static")
    layer = layer_of(IntegerGrid(8), ROW, inputs, input_step=step, input_zero_point=zero_point)
    scheme = library_scheme(layer)
    tensors = layer_tensors(layer, scheme, ChannelTransform())
    codes = torch.arange(grid.lowest, grid.highest + 1).repeat(64)
    # Never near a tie, where the library's quotient and our product might round apart.
    noise = (torch.rand(len(codes), generator=torch.Generator().manual_seed(0)) - 0.5) * 0.8
    x = ((codes - (0 if zero_point is None else zero_point) + noise) * step)[None]
    encoder = encoder_of(inputs, ChannelTransform(), step, zero_point, None)
    assert encoder is not None
    theirs = fake_quantize(x, tensors["input_scale"], tensors.get("input_zero_point"), scheme.input_activations)
    assert torch.equal(theirs, encoder(x).values())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_token_has_a_scale_of_its_own(dimensions: int, symmetric: bool) -> None:
    """Symmetric ones are the largest number over 2^b − 1 halves, ours over 2^(b − 1) − 1."""
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    grid = IntegerGrid(8, symmetric)
    layer = layer_of(IntegerGrid(8), ROW, InputScheme(grid, "token"))
    data = loadable({"layer": scheme_data(layer.scheme, dimensions)})
    scheme: Any = quantization_config(data, ["layer"])[1]["layer"]
    sizes = (2, 5, COLUMNS)[-dimensions:]
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 5)[:, None]
    scale, _ = compute_dynamic_scales_and_zp(x, scheme.input_activations, torch.nn.Module())
    _, step, _ = token_codes(x, ChannelTransform(), grid)
    expected = step * 127 / 127.5 if symmetric else step
    torch.testing.assert_close(scale.reshape(step.shape), expected, rtol=4 * ROUNDING, atol=0.0)


@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 8)], ids=lambda g: g.kind)
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_the_next_layers_want_goes_into_scales_and_bias(granularity: Granularity, symmetric: bool) -> None:
    bias = torch.linspace(-1.0, 1.0, ROWS)
    layer = layer_of(IntegerGrid(4, symmetric), granularity, bias=bias)
    outputs = ChannelTransform(torch.linspace(-3.0, 2.0, ROWS).double(), torch.linspace(0.01, 50.0, ROWS).double())
    scheme = library_scheme(layer)
    tensors = layer_tensors(layer, scheme, outputs)
    x = torch.randn(7, COLUMNS, dtype=torch.float64)
    wanted = outputs.apply(x @ layer.dequantized_weight().double().t() + bias)
    given = x @ decompressed(tensors, scheme).double().t() + tensors["bias"]
    # Two roundings of a scale to float32, and one of a bias, each of at most half an ulp.
    magnitude = outputs.apply(x.abs() @ layer.dequantized_weight().double().abs().t() + 4.0).abs()
    assert bool(((given - wanted).abs() <= 2 * ROUNDING * magnitude.clamp(min=1.0)).all())


def test_rows_that_share_a_scale_are_not_rescaled_one_by_one() -> None:
    layer = layer_of(IntegerGrid(4), Granularity("column_group", 8))
    weight = integer_weight(layer.codes(), layer.weight_parameters, layer.scheme.weights)
    with pytest.raises(InputError, match="share scales"):
        rows_divided(weight, torch.linspace(1.0, 2.0, ROWS).double())
    by_group = torch.tensor([1.0, 2.0, 4.0]).repeat_interleave(8).double()
    divided = decoded(rows_divided(weight, by_group))
    assert torch.equal(divided, layer.dequantized_weight() / by_group[:, None].float())


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (LinearScheme(32, 8, WeightScheme(FloatGrid(2, 1), ROW), InputScheme(FloatGrid(2, 1), "static")), "E2M1"),
        (LinearScheme(32, 8, WeightScheme(FloatGrid(4, 3), ROW)), "E4M3.*more than 8 bits"),
        (LinearScheme(30, 8, WeightScheme(IntegerGrid(4), Granularity("row_group", 8))), "30 inputs.*groups of 8"),
        (
            LinearScheme(
                32, 8, WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static"), exponents=True
            ),
            "power of two",
        ),
    ],
    ids=["float inputs", "wide float weights", "broken groups", "exponents"],
)
def test_what_the_format_cannot_hold_has_a_reason(scheme: LinearScheme, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        scheme_data(scheme)


def test_a_layer_of_all_blocks_is_one_target() -> None:
    rows = scheme_data(LinearScheme(32, 8, WeightScheme(IntegerGrid(4), ROW)))
    columns = scheme_data(LinearScheme(32, 8, WeightScheme(IntegerGrid(4), Granularity("column_group", 8))))
    layers = {f"h.{block}.{name}": rows for block in range(12) for name in ("q1", "k")}
    layers |= {f"h.{block}.q2": columns if block % 2 else rows for block in range(12)}
    config, _ = quantization_config(loadable(layers), [*layers, "head"])
    first, second = config["config_groups"].values()
    assert first["targets"] == [r"re:h\.\d+\.q1$", r"re:h\.\d+\.k$", *(f"h.{block}.q2" for block in range(0, 12, 2))]
    assert second["targets"] == [f"h.{block}.q2" for block in range(1, 12, 2)]
    assert config["ignore"] == ["head"]
    assert config["quantization_status"] == "compressed"
    assert vllm_obstacles(layers) == ("groups along columns",)


def test_smaller_steps_of_tokens_are_told_where_they_show() -> None:
    def layer(bits: int, symmetric: bool, kind: Any) -> dict[str, Any]:
        inputs = InputScheme(IntegerGrid(bits, symmetric), kind)
        return scheme_data(LinearScheme(32, 8, WeightScheme(IntegerGrid(8), ROW), inputs))

    assert (
        finer_steps({"a": layer(8, True, "token"), "b": layer(4, False, "token"), "c": layer(4, True, "static")}) == ()
    )
    (note,) = finer_steps({"a": layer(4, True, "token"), "b": layer(4, True, "token")})
    assert note.startswith("4-bit inputs per token have steps 6.7 % smaller")


def test_zero_points_are_packed_only_where_transformers_dequantizes_at_once() -> None:
    groups = scheme_data(LinearScheme(32, 8, WeightScheme(IntegerGrid(4, False), Granularity("row_group", 8))))
    columns = scheme_data(LinearScheme(32, 8, WeightScheme(IntegerGrid(4, False), Granularity("column_group", 8))))
    config, _ = quantization_config(loadable({"a": groups, "b": groups}), ["a", "b"])
    assert config["dequantize"] and config["config_groups"]["group_0"]["weights"]["strategy"] == "group"
    config, _ = quantization_config(loadable({"a": groups, "b": columns}), ["a", "b"])
    structures = [group["weights"]["block_structure"] for group in config["config_groups"].values()]
    assert "dequantize" not in config and structures == [[1, 8], [8, 1]]


def test_asymmetric_grids_are_those_with_zero_points() -> None:
    for grid in (*INTEGERS, *FLOATS):
        layer = layer_of(grid, ROW)
        tensors = layer_tensors(layer, library_scheme(layer), ChannelTransform())
        assert ("weight_zero_point" in tensors) == is_asymmetric(grid)
