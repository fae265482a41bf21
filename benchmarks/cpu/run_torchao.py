"""torchao's side of `peers.py`, with the torch of its environment.

    PEER/bin/python benchmarks/cpu/run_torchao.py < JOB.json      (see `runner.py`)

A layer is F.linear with torchao's tensor as weight, called once per weight and round, eager or compiled by torch. One
compiled function serves all weights, which are its arguments: layers of their own would be compiled one by one, and
beyond eight torch falls back to eager. Inductor's freezing, which needs constant weights, is not used.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from runner import Case, NotMeasuredError, Product, Ready, read_job, serve
from torch.nn import functional
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)

GROUP = 128


def _plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


def _make(config: Callable[[], Any] | None, compiled: bool = False, dtype: torch.dtype = torch.bfloat16) -> Product:
    @torch.no_grad()
    def make(case: Case) -> Ready:
        torch.set_num_threads(case.threads)
        weights, plain = [], torch.empty(case.outputs, case.inputs, dtype=dtype).normal_(std=case.inputs**-0.5)
        for _ in range(case.copies):
            layer = torch.nn.Linear(case.inputs, case.outputs, bias=False, dtype=dtype, device="meta")
            layer.weight = torch.nn.Parameter(plain.clone(), requires_grad=False)
            if config is not None:
                quantize_(layer, config())
                if type(layer.weight.data) is torch.Tensor and isinstance(layer.weight, torch.nn.Parameter):
                    raise NotMeasuredError("torchao left the layer as it was")
            weights.append(layer.weight)
        torch._dynamo.reset()
        product = torch.compile(_plain, dynamic=False) if compiled else _plain
        x = torch.randn(case.rows, case.inputs).to(dtype)

        @torch.no_grad()
        def call() -> None:
            for weight in weights:
                product(x, weight)

        exact = functional.linear(x, plain).float()
        error = float((product(x, weights[0]).float() - exact).norm() / exact.norm())
        return Ready(call, _bytes(weights[0]), f"relative error {error:.3f}")

    bits = {torch.float32: 32.0, torch.bfloat16: 16.0}[dtype] if config is None else 8.0
    return Product(bits, make)


def _bytes(weight: torch.Tensor) -> int:
    """Bytes of the tensors that a weight consists of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()
    return sum(_bytes(getattr(weight, name)) for name in names if getattr(weight, name) is not None)


def _three_bits() -> IntxWeightOnlyConfig:
    return IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(GROUP))


def _four_bits() -> PrototypeInt4WeightOnlyConfig:
    return PrototypeInt4WeightOnlyConfig(group_size=GROUP)


PRODUCTS = {
    "fp32": _make(None, dtype=torch.float32),
    "bf16": _make(None),
    "W8A8 dynamic": _make(Int8DynamicActivationInt8WeightConfig),
    "W8A8 dynamic, compiled": _make(Int8DynamicActivationInt8WeightConfig, compiled=True),
    "W8": _make(Int8WeightOnlyConfig),
    "W8, compiled": _make(Int8WeightOnlyConfig, compiled=True),
    "W4 g128": _make(_four_bits),
    "W3 g128, compiled": _make(_three_bits, compiled=True),
}
"""W4 is the prototype of opaque tensors, which calls aten._weight_int4pack_mm_for_cpu."""


if __name__ == "__main__":
    serve(read_job(), PRODUCTS, {"torchao": version("torchao"), "torch": torch.__version__})
