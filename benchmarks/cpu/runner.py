"""What all run_PEER.py share: a job from stdin, products timed one at a time, figures to stdout. Needs no torch.

The job, JSON: shapes [[out_features, in_features], …], rows, threads, rounds, seconds (of one product, after which no
round begins), rotate (MB), only (names of products, or null). The answer, JSON: versions, results and missing.

Weights come from memory: a product has so many weights that they take `rotate` MB together, and a round goes through
all of them once; its time divided by their number is one product's. The threads of a peer may spin while they wait, so
products are not interleaved.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST_ROUNDS = 3
WARM_UP = 2
REASON = 300


@dataclass(frozen=True)
class Case:
    """One measurement: a matrix [outputs, inputs], rows of the input, and how many weights to make."""

    outputs: int
    inputs: int
    rows: int
    copies: int
    threads: int


@dataclass(frozen=True)
class Ready:
    """round: multiplies with every weight once. bytes: of one weight in memory, scales included. note: how it ran."""

    round: Callable[[], object]
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Product:
    """One kind of product of a peer; bits: stored per weight, about."""

    bits: float
    make: Callable[[Case], Ready]


class NotMeasuredError(Exception):
    """Why a product is not measured."""


def _seconds(ready: Ready, copies: int, rounds: int, limit: float) -> list[float]:
    for _ in range(WARM_UP):
        ready.round()
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < rounds and (len(found) < LEAST_ROUNDS or time.perf_counter() - started < limit):
        begun = time.perf_counter()
        ready.round()
        found.append((time.perf_counter() - begun) / copies)
    return found


def read_job() -> dict[str, Any]:
    """The job. Whatever libraries print to stdout goes to stderr from here on."""
    job = json.load(sys.stdin)
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return job


def serve(job: Mapping[str, Any], products: Mapping[str, Product], versions: Mapping[str, str]) -> None:
    """Measures every product for every shape and number of rows and prints the answer."""
    results, missing = [], []
    for outputs, inputs in job["shapes"]:
        for rows in job["rows"]:
            for name, product in products.items():
                if job.get("only") is not None and name not in job["only"]:
                    continue
                size = outputs * inputs * product.bits / 8
                copies = max(1, -int(-job["rotate"] * 1e6 // size))
                case = {"product": name, "shape": [outputs, inputs], "rows": rows}
                print(f"{name}, {rows} rows, ({outputs}, {inputs})", file=sys.stderr)
                try:
                    ready = product.make(Case(outputs, inputs, rows, copies, job["threads"]))
                    seconds = _seconds(ready, copies, job["rounds"], job["seconds"])
                except Exception as error:  # whatever a library raises is the reason
                    missing.append({**case, "why": f"{type(error).__name__}: {error}"[:REASON]})
                    continue
                every = [round(1e6 * each, 2) for each in seconds]
                results.append(
                    {**case, "copies": copies, "bytes": ready.bytes, "note": ready.note, "microseconds": every}
                )
                del ready
    json.dump({"versions": dict(versions), "results": results, "missing": missing}, sys.stdout)
    sys.stdout.flush()
