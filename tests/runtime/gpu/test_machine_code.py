"""The kernels compile for Hopper, keep to their registers, and use its tensor cores: seen in the machine code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
KINDS = "w8a8-channel,w8a8-token,w6a6,w4a4-fp4,w4-oc,w3-oc,w3-ic"
MANY = 2048


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    """What `benchmarks/gpu/machine_code.py` tells, by kind, tokens and kernel. A process of its own: see there."""
    script = ROOT / "benchmarks/gpu/machine_code.py"
    sizes = ("--tokens", f"1,16,{MANY}", "--outputs", "512", "--columns", "1024")
    done = subprocess.run(
        [sys.executable, script, "--kinds", KINDS, *sizes, "--json", "-"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_kernel_is_launched(kernels: dict[str, dict[str, Any]]) -> None:
    names = {name.rpartition(": ")[2] for name in kernels}
    assert names == {
        "static_codes", "token_codes", "product_of_bytes", "product_of_strands", "whole_numbers", "product_of_digits",
        "matrix",
    }  # fmt: skip


def test_nothing_spills_out_of_registers(kernels: dict[str, dict[str, Any]]) -> None:
    assert {name: kernel["spilled"] for name, kernel in kernels.items() if kernel["spilled"]} == {}


def test_products_of_many_tokens_are_the_tensor_cores_of_hopper(kernels: dict[str, dict[str, Any]]) -> None:
    many = {name: kernel["tensor_cores"] for name, kernel in kernels.items() if f", {MANY}: product" in name}
    assert len(many) == 4
    assert all("IGMMA" in cores for cores in many.values())


def test_products_of_few_tokens_are_tensor_cores_too(kernels: dict[str, dict[str, Any]]) -> None:
    few = {name: kernel["tensor_cores"] for name, kernel in kernels.items() if ", 1: product" in name}
    assert len(few) == len(KINDS.split(","))
    assert all(few.values())
