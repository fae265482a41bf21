"""Both sides of `peers.py`, each in a process of its own: our layers, and a peer's products."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from environments import HERE, peer_python

COUNTERPARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "onnxruntime": {
        "fp32": ("fp32",),
        "W8A8 static": ("w8a8-static",),
        "W8A8 dynamic": ("w8a8-token",),
        "W8 g128, level 4": ("w8-oc",),
        "W8 g128, level 0": ("w8-oc",),
        "W4 g128, level 4": ("w4-oc", "w4a8-static"),
        "W4 g128, level 0": ("w4-oc",),
        "W2 g128, level 4": ("w2-oc",),
    },
    "openvino": {
        "fp32": ("fp32",),
        "bf16": ("bf16",),
        "W8A8 static": ("w8a8-static",),
        "W8 g128": ("w8-oc",),
        "W4 g128": ("w4-oc", "w4a8-static"),
        "W8 g128, no dynamic": ("w8-oc",),
        "W4 g128, no dynamic": ("w4-oc",),
        "W4 g128, bf16": ("w4-oc",),
    },
    "llama_cpp": {
        "F32": ("fp32",),
        "F16": ("bf16",),
        "BF16": ("bf16",),
        "Q8_0": ("w8-oc", "w8a8-token"),
        "Q6_K": ("w6-oc",),
        "Q4_0": ("w4-oc", "w4a8-static"),
        "Q4_K": ("w4-oc",),
        "Q3_K": ("w3-oc",),
        "Q2_K": ("w2-oc",),
    },
    "torchao": {
        "fp32": ("fp32",),
        "bf16": ("bf16",),
        "W8A8 dynamic": ("w8a8-token",),
        "W8A8 dynamic, compiled": ("w8a8-token",),
        "W8": ("w8-oc",),
        "W8, compiled": ("w8-oc",),
        "W4 g128": ("w4-oc",),
        "W3 g128, compiled": ("w3-oc",),
    },
}
"""A peer's products and which of ours, or of torch's own, stand beside them."""

CASE_SECONDS = 1200
REASON = 300


class PeerDiedError(Exception):
    """The end of what a process said before it failed."""


def process(command: list[str], given: str, threads: int) -> str:
    """stdout of a process with so many threads, and no other use of the machine. Raises PeerDiedError."""
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    alone = {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                command, input=given, text=True, stdout=subprocess.PIPE, stderr=errors, timeout=CASE_SECONDS,
                env={**os.environ, **counts, **alone},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise PeerDiedError(f"took more than {CASE_SECONDS} s") from None
        if done.returncode:
            errors.seek(0)
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise PeerDiedError(f"ended with {how}: {errors.read()[-REASON:].strip()}")
    return done.stdout


def ours(names: list[str], shape: str, rows: int, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Our layers' results, and torch's, by name. Raises PeerDiedError."""
    command = [sys.executable, str(HERE / "run_channelwise.py")]
    answer = json.loads(process(command, json.dumps(_job(names, shape, rows, asked)), asked.threads))
    return {result["product"]: result for result in answer["results"]}


def _job(names: list[str] | None, shape: str, rows: int, asked: argparse.Namespace) -> dict[str, Any]:
    job = {"shapes": [[int(side) for side in shape.split("x")]], "rows": [rows], "only": names}
    return job | {name: getattr(asked, name) for name in ("threads", "rounds", "seconds", "rotate")}


def peer_figures(peer: str, shape: str, rows: int, asked: argparse.Namespace) -> dict[str, Any]:
    """What `runner.serve` answers; product by product where one takes the process down."""
    python = peer_python(peer)
    job = _job(None, shape, rows, asked)
    command = [str(python), str(HERE / f"run_{peer}.py")]
    try:
        return json.loads(process(command, json.dumps(job), asked.threads))
    except PeerDiedError as error:
        print(f"{peer}: {error}; product by product", file=sys.stderr)
    whole: dict[str, Any] = {"versions": {}, "results": [], "missing": []}
    for product in COUNTERPARTS[peer]:
        try:
            answer = json.loads(process(command, json.dumps({**job, "only": [product]}), asked.threads))
        except PeerDiedError as error:
            answer = {"versions": {}, "results": [], "missing": [{"product": product, "why": str(error)}]}
        whole["versions"] |= answer["versions"]
        whole["results"] += answer["results"]
        whole["missing"] += answer["missing"]
    return whole
