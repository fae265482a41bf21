"""The kernels compile for Hopper, keep to their registers, and use its tensor cores: seen in the machine code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    """What `compiling` tells, by layer, tokens and kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.gpu.compiling"], capture_output=True, text=True, cwd=ROOT, env=environment
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
    assert {name: kernel["stack"] for name, kernel in kernels.items() if kernel["stack"]} == {}


def test_products_of_many_tokens_are_the_tensor_cores_of_hopper(kernels: dict[str, dict[str, Any]]) -> None:
    many = {name: kernel["counts"] for name, kernel in kernels.items() if ", 2048: product" in name}
    assert len(many) == 4
    assert all(counts.get("IGMMA", 0) for counts in many.values())


def test_products_of_few_tokens_are_tensor_cores_too(kernels: dict[str, dict[str, Any]]) -> None:
    few = {name: kernel["counts"] for name, kernel in kernels.items() if ", 1: product" in name}
    assert len(few) == 7
    assert all(counts.get("IGMMA", 0) + counts.get("IMMA", 0) for counts in few.values())
