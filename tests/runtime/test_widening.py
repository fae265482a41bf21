"""Products of 16-bit numbers in float32: the same up to one rounding, for the same calls, with the same gradients."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from channelwise.runtime import widening
from channelwise.runtime.widening import in_wide_products, wide_products, without_instructions

NARROW = [torch.bfloat16, torch.float16]
MODEL = torch.nn.Linear(2, 2, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has products of neither."""
    monkeypatch.setattr(widening, "without_instructions", lambda: frozenset(NARROW))


class Seen(torch.overrides.TorchFunctionMode):
    """The dtypes that products are really computed in: outside of the context, so behind it.

    slow: those of enough rows that are computed in 16 bits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []
        self.slow: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in NAMES:
            first = args[name in ("addmm", "baddbmm")]
            self.dtypes.append(first.dtype)
            fast = name == "scaled_dot_product_attention" and first.dtype == torch.bfloat16
            if first.dtype in NARROW and not fast and first.numel() >= widening.ROWS * first.shape[-1]:
                self.slow.append(name)
        return func(*args, **(kwargs or {}))


NAMES = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "conv2d", "scaled_dot_product_attention"}


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


CALLS: dict[str, tuple[Callable[..., torch.Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (functional.linear, ((3, 6, 16), (12, 16), (12,))),
    "linear without bias": (functional.linear, ((17, 16), (12, 16))),
    "linear of a vector": (functional.linear, ((17, 16), (16,))),
    "matmul": (torch.matmul, ((2, 17, 16), (2, 16, 8))),
    "@": (lambda x, y: x @ y, ((2, 17, 16), (16, 8))),
    "method": (lambda x, y: x.bmm(y), ((2, 17, 16), (2, 16, 8))),
    "addmm": (torch.addmm, ((8,), (17, 16), (16, 8))),
    "baddbmm": (lambda b, x, y: torch.baddbmm(b, x, y, beta=0.5, alpha=2.0), ((2, 17, 8), (2, 17, 16), (2, 16, 8))),
    "attention": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        ((1, 2, 17, 8), (1, 2, 17, 8), (1, 2, 17, 8)),
    ),
    "convolution": (lambda x, w, b: functional.conv2d(x, w, b, stride=4), ((2, 3, 8, 8), (6, 3, 4, 4), (6,))),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", NARROW)
def test_a_product_is_that_of_float32_rounded_once_but_for_attention_in_bfloat16(name: str, dtype: torch.dtype) -> None:
    call, shapes = CALLS[name]
    arguments = [random(*shape, dtype=dtype) for shape in shapes]
    stays = name == "attention" and dtype == torch.bfloat16
    expected = call(*arguments) if stays else call(*[value.float() for value in arguments]).to(dtype)
    with Seen() as seen, wide_products(MODEL):
        found = call(*arguments)
    assert found.dtype == dtype
    assert set(seen.dtypes) == {dtype if stays else torch.float32}
    assert torch.equal(found, expected)


def test_a_mask_of_either_kind_reaches_attention() -> None:
    q = random(1, 2, 17, 8, dtype=torch.float16)
    for mask in (torch.ones(17, 17, dtype=torch.bool).tril(), random(17, 17, dtype=torch.float16)):
        wide = mask if mask.dtype == torch.bool else mask.float()
        expected = functional.scaled_dot_product_attention(q.float(), q.float(), q.float(), attn_mask=wide)
        with wide_products(MODEL):
            found = functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        assert torch.equal(found, expected.half())


def test_a_large_weight_is_widened_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widening, "WIDENED", 16 * 5)
    x, weight, bias = (random(*shape, dtype=torch.bfloat16) for shape in ((17, 16), (12, 16), (12,)))
    with Seen() as seen, wide_products(MODEL):
        found = functional.linear(x, weight, bias)
    assert len(seen.dtypes) == 3
    torch.testing.assert_close(found, functional.linear(x.float(), weight.float(), bias.float()).bfloat16())


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_left_alone(weight_dtype: torch.dtype) -> None:
    x, weight = random(17, 16, dtype=weight_dtype), random(12, 16, dtype=weight_dtype)
    with wide_products(MODEL):
        assert torch.equal(functional.linear(x, weight), x @ weight.t())


def test_a_few_rows_stay_in_their_dtype() -> None:
    x, weight = random(widening.ROWS - 1, 16, dtype=torch.bfloat16), random(12, 16, dtype=torch.bfloat16)
    with Seen() as seen, wide_products(MODEL):
        functional.linear(x, weight)
    assert seen.dtypes == [torch.bfloat16]


def test_a_model_without_such_numbers_is_left_alone() -> None:
    x, weight = random(17, 16, dtype=torch.bfloat16), random(12, 16, dtype=torch.bfloat16)
    with Seen() as seen, wide_products(torch.nn.Linear(2, 2)):
        functional.linear(x, weight)
    assert seen.dtypes == [torch.bfloat16]


@pytest.mark.parametrize(("devices", "entered"), [(["cuda"], False), (["cuda", "meta"], True), (["cpu"], True)])
def test_a_model_on_a_gpu_is_left_alone_unless_blocks_of_it_wait_elsewhere(devices: list[str], entered: bool) -> None:
    class Placed:
        def parameters(self) -> Any:
            return [SimpleNamespace(dtype=torch.bfloat16, device=torch.device(device)) for device in devices]

    modes = len(torch.overrides._get_current_function_mode_stack())
    model: Any = Placed()
    with wide_products(model):
        assert len(torch.overrides._get_current_function_mode_stack()) - modes == entered


def test_a_function_of_a_model_runs_within() -> None:
    @in_wide_products
    def product(model: torch.nn.Module, x: torch.Tensor, *, weight: torch.Tensor) -> torch.Tensor:
        """Its text."""
        return functional.linear(x, weight)

    with Seen() as seen:
        product(MODEL, random(17, 2, dtype=torch.bfloat16), weight=MODEL.weight)
    assert seen.dtypes == [torch.float32]
    assert product.__doc__ == "Its text."


def test_mistakes_are_told_as_before() -> None:
    with wide_products(MODEL), pytest.raises(RuntimeError, match="same dtype"):
        functional.linear(random(17, 16, dtype=torch.bfloat16), random(12, 16, dtype=torch.float32))


def test_gradients_are_those_of_float32() -> None:
    x, weight = random(17, 16, dtype=torch.bfloat16), random(12, 16, dtype=torch.bfloat16)
    x.requires_grad_(True)
    with wide_products(MODEL):
        loss = functional.linear(x, weight).float().square().sum()
    (found,) = torch.autograd.grad(loss, x)
    wide = x.detach().float().requires_grad_(True)
    rounded = functional.linear(wide, weight.float())
    (expected,) = torch.autograd.grad((rounded + (rounded.bfloat16().float() - rounded).detach()).square().sum(), wide)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-6, atol=2**-6)


def test_nothing_is_known_of_processors_other_than_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (
        ({"architecture": "aarch64"}, set()),
        ({"architecture": "x86_64", "avx2": True}, set(NARROW)),
        ({"architecture": "x86_64", "avx512_bf16": True}, {torch.float16}),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_fp16": True}, set()),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        without_instructions.cache_clear()
        assert without_instructions() == expected
    monkeypatch.undo()
    without_instructions.cache_clear()
