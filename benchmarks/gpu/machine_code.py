"""What the kernels become on a Hopper GPU (sm_90), without one: registers, spills, instructions for each weight.

    PYTHONPATH=src python benchmarks/gpu/machine_code.py
    PYTHONPATH=src python benchmarks/gpu/machine_code.py --kinds w4-oc,w3-oc --outputs 28672 --columns 8192 --json -

Layers are computed on the CPU up to each launch; in place of it the kernel is compiled for the arguments it was given,
by Triton with the assembler it brings. Instructions are those of the loop around the tensor cores, once through;
"per weight" is that number times the threads of a program over the weights that the program meets in a turn, so it says
how much a multiprocessor has to issue for a weight that it reads; "half speed" are those among them that it computes
for 64 threads a cycle instead of 128 (whole numbers and bits; CUDA programming guide, compute capability 9.0). "warps"
and "KB asked for" are those of a multiprocessor of an H200 while programs wait their turn, as far as registers, shared
memory and the number of programs allow: KB of the weight that are on their way at a time. No time is measured.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted cannot be compiled; Triton looks when it is imported

import torch
import triton
from kinds import KINDS, random_layer
from rich import box
from rich.console import Console
from rich.table import Table
from tables import chosen
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.gpu.executions import gpu_execution
from channelwise.runtime.linear import QuantizedLinear

HOPPER = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
THREADS_OF_A_WARP = 32
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TENSOR_CORES = ("IGMMA", "IMMA")
HALF_SPEED = {
    "LOP3", "SHF", "PRMT", "IADD3", "VIADD", "LEA", "ISETP", "SEL", "SGXT", "PLOP3", "I2FP", "IMNMX", "VIMNMX", "IMAD",
    "IABS", "BMSK", "LOP",
}  # fmt: skip
HEADINGS = (
    "kernel", "registers", "spilled", "shared", "tensor cores", "in the loop", "per weight", "half speed", "warps",
    "KB asked for",
)  # fmt: skip
MULTIPROCESSORS = 132
REGISTERS, SHARED_BYTES, WARPS = 65536, 227 * 1024, 64
"""Of a multiprocessor; a program takes a KiB of shared memory more than it asks for (CUDA's occupancy tables)."""


def signature_of(value: Any, constant: bool) -> str:
    """How Triton names the type of an argument."""
    if constant or value is None:
        return "constexpr"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
    return POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"


def source_of(kernel: Any, given: dict[str, Any]) -> ASTSource:
    """The kernel for these arguments; addresses are multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        signature[parameter.name] = signature_of(value, parameter.is_constexpr)
        if signature[parameter.name] == "constexpr":
            constants[(place,)] = value
        elif isinstance(value, torch.Tensor):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def compiled(kernel: Any, given: dict[str, Any], options: dict[str, Any], programs: int) -> dict[str, Any]:
    """What the kernel takes of a multiprocessor, and which instructions it has; programs: of a launch."""
    program = triton.compile(source_of(kernel, given), target=HOPPER, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "-res-usage", file.name)
        lines = _output(TOOLS / "nvdisasm", "-c", file.name).splitlines()
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    instructions, threads = main_loop(lines), program.metadata.num_warps * THREADS_OF_A_WARP
    loop = len(instructions)
    names = [name for line in lines if (name := instruction(line)) is not None]
    weights = weights_of_a_turn(given)
    warps = program.metadata.num_warps
    together = min(
        REGISTERS // (max(int(registers), 1) * threads), SHARED_BYTES // (program.metadata.shared + 1024),
        WARPS // warps, -(-programs // MULTIPROCESSORS),
    )  # fmt: skip
    return {
        "registers": int(registers),
        "spilled": int(stack),
        "shared": program.metadata.shared,
        "tensor_cores": {name: names.count(name) for name in TENSOR_CORES if name in names},
        "loop": loop,
        "per_weight": loop * threads / weights if weights and loop else None,
        "half_speed": sum(name in HALF_SPEED for name in instructions) * threads / weights
        if weights and loop
        else None,
        "warps": together * warps,
        "asked": together * bytes_asked_for(given, options) if weights else None,
    }


def weights_of_a_turn(given: dict[str, Any]) -> int:
    """How many weights a program meets in one turn of its loop; 0 of kernels that have no turns."""
    if "DEPTH" in given:
        return int(given["OUTPUT_TILE"] * given["DEPTH"])
    if "SPLITS" in given:
        return int(given["OUTPUT_TILE"] * given["SPLITS"] * given["STRANDS"] * given["WIDTH"])
    return 0


def bytes_asked_for(given: dict[str, Any], options: dict[str, Any]) -> int:
    """Bytes of the weight that a program asks for at a time: all turns but the one that it computes."""
    if "DEPTH" in given:
        turn, turns = given["OUTPUT_TILE"] * given["DEPTH"], -(-given["PADDED"] // given["DEPTH"])
    else:
        turn = given["OUTPUT_TILE"] * given["SPLITS"] * given["PLACES"] * given["WIDTH"]
        turns = -(-given["BLOCKS"] // given["SPLITS"])
    return int(turn * min(turns, options["num_stages"] - 1))


def instruction(line: str) -> str | None:
    """The instruction that stands in a line of disassembly."""
    found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", line)
    return None if found is None else found[1]


def main_loop(lines: list[str]) -> list[str]:
    """The instructions from a label to a jump back to it: of such parts with tensor cores, the shortest.

    Longer ones come from waits whose second attempts lie behind the rest of the program.
    """
    places = {line.split(":")[0]: number for number, line in enumerate(lines) if re.match(r"\.L\S+:", line)}
    found: list[list[str]] = []
    for number, line in enumerate(lines):
        jump = re.search(r"BRA[^`]*`\((\.L\S+)\)", line)
        if jump and places.get(jump[1], number) < number:
            inside = [name for part in lines[places[jump[1]] : number + 1] if (name := instruction(part))]
            if any(name in TENSOR_CORES for name in inside):
                found.append(inside)
    return min(found, key=len, default=[])


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def launches(layer: QuantizedLinear, tokens: int) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any], int]]:
    """The kernels that a layer launches for so many tokens: arguments, options, programs; none is computed."""
    taken: list[tuple[Any, dict[str, Any], dict[str, Any], int]] = []

    def take(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        given |= {name: value for name, value in options.items() if name not in OPTIONS}
        taken.append((kernel, given, {name: options[name] for name in OPTIONS if name in options}, prod(grid)))

    run, triton.JITFunction.run = triton.JITFunction.run, take
    try:
        steps = (layer.input_step, layer.input_zero_point, layer.input_exponent)
        execution = gpu_execution(layer._parts(), encoder_of(layer.scheme.inputs, layer.transform, *steps))
        if execution is None:
            raise SystemExit(f"error: {layer} has no kernel")
        execution(torch.randn(tokens, layer.in_features).bfloat16())
    finally:
        triton.JITFunction.run = run
    yield from taken


def found_for(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By kind, tokens and kernel: what came of it."""
    found = {}
    for kind in chosen(KINDS, asked.kinds, "kind"):
        layer = random_layer(KINDS[kind], asked.outputs, asked.columns, "cpu")
        for tokens in map(int, asked.tokens.split(",")):
            for kernel, *launch in launches(layer, tokens):
                found[f"{kind}, {tokens}: {kernel.fn.__name__}"] = compiled(kernel, *launch)
    return found


def main() -> None:
    """Prints one table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--tokens", default="1,2048")
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="write all figures there; - for standard output, in place of a table")
    asked = parser.parse_args()
    found = found_for(asked)
    if asked.json == Path("-"):
        json.dump(found, sys.stdout)
        return
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    table = Table(
        title=f"sm_90, weights [{asked.outputs}, {asked.columns}], triton {triton.__version__}", box=box.MARKDOWN
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right", no_wrap=True)
    for name, kernel in found.items():
        cores = ", ".join(f"{count} {core}" for core, count in kernel["tensor_cores"].items())
        shares = ("" if kernel[key] is None else f"{kernel[key]:.2f}" for key in ("per_weight", "half_speed"))
        numbers = (kernel["registers"], kernel["spilled"], kernel["shared"])
        asked_for = "" if kernel["asked"] is None else f"{kernel['asked'] / 1e3:.0f}"
        table.add_row(
            name, *map(str, numbers), cores, str(kernel["loop"] or ""), *shares, str(kernel["warps"]), asked_for
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
