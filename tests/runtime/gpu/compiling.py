"""Compiles for Hopper (sm_90) what layers launch, without a GPU, and tells what came of it: python -m, one JSON object.

A process of its own: where Triton's interpreter was asked for, nothing can be compiled. The layers' own code runs up to
each launch, on the CPU; in place of the launch the kernel is compiled for the arguments it was given.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.runtime.scheme import InputScheme, WeightScheme

HOPPER = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
OUTPUTS, COLUMNS = 512, 1024
PER_OC, PER_IC = Granularity("row_group", 128), Granularity("column_group", 128)
LAYERS = {
    "W8A8": (WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static")),
    "W8A8 per token": (WeightScheme(IntegerGrid(8, False), ROW), InputScheme(IntegerGrid(8, False), "token")),
    "W6A6": (WeightScheme(IntegerGrid(6), ROW), InputScheme(IntegerGrid(6), "static")),
    "W4A4": (WeightScheme(FloatGrid(2, 1), ROW), InputScheme(FloatGrid(2, 1), "static")),
    "W4": (WeightScheme(IntegerGrid(4, False), PER_OC), None),
    "W3": (WeightScheme(IntegerGrid(3, False), PER_OC), None),
    "W3 down columns": (WeightScheme(IntegerGrid(3, False), PER_IC), None),
}


def signature_of(value: Any, constant: bool) -> str:
    """How Triton names the type of an argument."""
    if constant or value is None:
        return "constexpr"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
    return POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"


def compiled(kernel: Any, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What the kernel takes of a multiprocessor, and how often each instruction stands in it."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        signature[parameter.name] = signature_of(value, parameter.is_constexpr)
        if signature[parameter.name] == "constexpr":
            constants[(place,)] = value
        elif isinstance(value, torch.Tensor):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=HOPPER, options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "-res-usage", file.name)
        code = _output(TOOLS / "nvdisasm", "-c", file.name)
    names = re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", code)
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    return {
        "registers": int(registers), "stack": int(stack), "counts": {name: names.count(name) for name in set(names)}
    }  # fmt: skip


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Every kernel of every layer, for one token and for many."""
    from tests.runtime.gpu.definition import execution_of
    from tests.runtime.layers import build

    found: dict[str, dict[str, Any]] = {}
    label = ""

    def take(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(self.arg_names, arguments, strict=False))
        given |= {name: value for name, value in options.items() if name not in OPTIONS}
        chosen = {name: options[name] for name in OPTIONS if name in options}
        found[f"{label}: {self.fn.__name__}"] = compiled(self, given, chosen)

    triton.JITFunction.run = take  # type: ignore[method-assign]
    for name, (weights, inputs) in LAYERS.items():
        layer = build(OUTPUTS, COLUMNS, weights, inputs, True, inputs is not None, inputs is not None)
        for tokens in (1, 2048 if inputs is not None else 300):
            label = f"{name}, {tokens}"
            execution_of(layer)(torch.randn(tokens, COLUMNS).bfloat16())
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
