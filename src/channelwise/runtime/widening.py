"""Products of 16-bit floating-point numbers in float32, on processors without instructions for theirs.

There torch multiplies bfloat16 and float16 one number after the other, in large products five to seven times slower
than float32 (`benchmarks/cpu/widening.py`). Rounded once at their end, the wider products are at least as exact.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.functional import conv1d, conv2d, conv3d, linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

ROWS = 16
"""Rows from which on a product is worth the conversion of its other factor."""

WIDENED = 2**23
"""Entries of a weight that are in float32 at one time."""

INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
"""What an x86 processor multiplies these numbers by, any of them; as torch.cpu.get_capabilities names it."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def wide_products(model: nn.Module) -> Iterator[None]:
    """A context in which such products of this model are computed in float32.

    Of tensors on the processor, in what this thread calls meanwhile: linear layers, matrix products, convolutions, and
    attention in float16. Results have the dtype that they would have without, gradients flow as before. Nothing
    changes, and nothing takes longer, where the model has no parameters of such dtypes, or all of them on a GPU.
    """
    dtypes = without_instructions()
    if dtypes.isdisjoint(parameter.dtype for parameter in model.parameters() if parameter.device.type != "cuda"):
        yield
        return
    with _WideProducts(dtypes):
        yield


def in_wide_products(
    function: Callable[Concatenate[nn.Module, Arguments], Result],
) -> Callable[Concatenate[nn.Module, Arguments], Result]:
    """The function in the context of `wide_products` of its first argument, a model."""

    @wraps(function)
    def within(model: nn.Module, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with wide_products(model):
            return function(model, *args, **kwargs)

    return within


@cache
def without_instructions() -> frozenset[torch.dtype]:
    """The 16-bit dtypes that this machine's processor has no products of. Nothing is known of others than x86."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if "x86" not in str(capabilities.get("architecture", "")):
        return frozenset()
    return frozenset(dtype for dtype, names in INSTRUCTIONS.items() if not any(capabilities.get(n) for n in names))


class _WideProducts(TorchFunctionMode):
    def __init__(self, dtypes: frozenset[torch.dtype]) -> None:
        super().__init__()
        self._dtypes = dtypes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product, first = _PRODUCTS.get(func, (func, 0))
        return (product if product is not func and self._is_slow(args, first) else func)(*args, **kwargs)

    def _is_slow(self, args: tuple[Any, ...], first: int) -> bool:
        """Whether the tensors are of such a dtype, and the first factor, at this place, has enough rows."""
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if len(tensors) <= first or any(t.dtype not in self._dtypes or t.device.type != "cpu" for t in tensors):
            return False
        return tensors[first].numel() >= ROWS * tensors[first].shape[-1]


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A few rows of the weight at a time: the whole one would be twice as large again as it is."""
    if weight.dim() != 2:
        return _widened(linear, x, weight, bias)
    step, wide = max(1, WIDENED // weight.shape[1]), x.float()
    parts = weight.split(step)
    biases = [None] * len(parts) if bias is None else bias.float().split(step)
    outputs = [linear(wide, rows.float(), own).to(x.dtype) for rows, own in zip(parts, biases, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _widened(func: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Of float32 copies of the tensors, in the dtype of the first one."""
    dtype = next(value.dtype for value in args if isinstance(value, torch.Tensor))

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype == dtype else value

    return func(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()}).to(dtype)


def _attention(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In bfloat16 torch's own is as fast."""
    if query.dtype == torch.bfloat16:
        return scaled_dot_product_attention(query, *args, **kwargs)
    return _widened(scaled_dot_product_attention, query, *args, **kwargs)


_MATRIX = (
    *(torch.matmul, torch.mm, torch.bmm),
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm),
)
_CONVOLUTIONS = (conv1d, conv2d, conv3d)
_WITH_ADDEND = (torch.addmm, torch.baddbmm, torch.Tensor.addmm, torch.Tensor.baddbmm)

_PRODUCTS: Mapping[Callable[..., Any], tuple[Callable[..., torch.Tensor], int]] = {
    linear: (_linear, 0),
    scaled_dot_product_attention: (_attention, 0),
    **{func: (partial(_widened, func), 0) for func in (*_MATRIX, *_CONVOLUTIONS)},
    **{func: (partial(_widened, func), 1) for func in _WITH_ADDEND},
}
"""By function what takes its place, and the place of the first factor among its arguments."""
