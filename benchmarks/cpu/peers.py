"""Ours beside other packages' CPU kernels, one linear layer at a time: torchao, ONNX Runtime, OpenVINO, llama.cpp.

    python benchmarks/cpu/peers.py [--peers llama_cpp,onnxruntime] [--threads 2] [--shapes 4096x4096] [--json FILE]
    python benchmarks/cpu/peers.py --quick
    python benchmarks/cpu/peers.py --install

Every peer has an environment of its own in build/bench_cpu/environments, made at the first run (llama.cpp is compiled,
which takes some minutes on two cores); --install makes them and stops. A peer runs in a process of its own
(run_PEER.py), one at a time, as thread pools that spin while they wait disturb each other. For every shape and number
of rows our layers are measured in the same way (run_channelwise.py) before the first peer and after each: ours µs are
medians over all rounds before and after the peer. Weights come from memory: there are --rotate MB of each (default
1000), a round goes through all of them, and its time divided by their number is one product's.

ratio is the peer's time over ours: above 1, ours is faster. Peers' products are paired with ours of the same width;
MB are bytes of the weight in memory, as group sizes differ (llama.cpp: 32 or 16 per scale, others 128). Ours takes and
gives bfloat16, torchao too; the others float32. A round of ours and of torchao's is a call from Python per weight, one
of the others a single call. What could not be measured is listed with the reason.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from environments import peer_python
from linears import QUICK_SHAPES, SHAPES
from rich.console import Console
from rich.table import Table
from sides import COUNTERPARTS, ours, peer_figures
from timing import Timing, chosen, head_line, machine, wide_console


def paired(peer: str, answer: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each of a peer's products and each of ours beside it."""
    rows = []
    for result in answer["results"]:
        theirs = Timing(tuple(1e-6 * each for each in result["microseconds"]))
        for name in COUNTERPARTS[peer][result["product"]]:
            every = [*before[name]["microseconds"], *after[name]["microseconds"]]
            our_time = Timing(tuple(1e-6 * each for each in every))
            medians = [statistics.median(side[name]["microseconds"]) for side in (before, after)]
            rows.append(
                {
                    "peer": peer,
                    "product": result["product"],
                    "ours": name,
                    "note": result["note"],
                    "peer_time": theirs.to_dict(),
                    "peer_quartiles": theirs.spread(),
                    "ours_time": our_time.to_dict(),
                    "ours_before_after_us": medians,
                    "ratio": theirs.median / our_time.median,
                    "peer_bytes": result["bytes"],
                    "ours_bytes": before[name]["bytes"],
                }
            )
    return rows


def table_of(case: dict[str, Any]) -> Table:
    """One shape and number of rows, all peers."""
    table = Table(title=f"{case['rows']} rows, ({case['shape'].replace('x', ', ')}); ratio: peer's time over ours")
    for heading in ("peer", "product", "ours"):
        table.add_column(heading, no_wrap=True)
    for heading in ("µs", "quartiles", "rounds", "MB", "ours µs", "before, after", "ours MB", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in case["results"]:
        table.add_row(
            row["peer"],
            row["product"],
            row["ours"],
            f"{row['peer_time']['median_us']:,.0f}",
            row["peer_quartiles"],
            str(row["peer_time"]["rounds"]),
            f"{row['peer_bytes'] / 1e6:.1f}",
            f"{row['ours_time']['median_us']:,.0f}",
            ", ".join(f"{each:,.0f}" for each in row["ours_before_after_us"]),
            f"{row['ours_bytes'] / 1e6:.1f}",
            f"{row['ratio']:.2f}",
        )
    return table


def case_of(peers: list[str], shape: str, rows: int, asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All peers for one shape and number of rows, ours before and after each."""
    names = sorted({name for peer in peers for each in COUNTERPARTS[peer].values() for name in each})
    case: dict[str, Any] = {"shape": shape, "rows": rows, "results": [], "missing": [], "versions": {}}
    before = ours(names, shape, rows, asked)
    for peer in peers:
        answer = peer_figures(peer, shape, rows, asked)
        after = ours(names, shape, rows, asked)
        case["results"] += paired(peer, answer, before, after)
        case["missing"] += [{"peer": peer, **each} for each in answer["missing"]]
        case["versions"] |= answer["versions"]
        before = after
    console.print(table_of(case))
    for each in case["missing"]:
        console.print(f"not measured: {each['peer']} {each['product']}: {each['why']}", markup=False)
    return case


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help=f"of {', '.join(COUNTERPARTS)}")
    parser.add_argument("--shapes", help=f"out x in, default {SHAPES}")
    parser.add_argument("--rows", help="default 1,16,128,512")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a product, after which no round begins")
    parser.add_argument("--rotate", type=int, default=1000, help="MB of weights between two uses of one")
    parser.add_argument("--install", action="store_true", help="make the environments and stop")
    parser.add_argument("--quick", action="store_true", help="a small shape and three rounds: does it run?")
    parser.add_argument("--json", type=Path, help="write all figures there, every round's among them")
    asked = parser.parse_args()
    asked.shapes = asked.shapes or (QUICK_SHAPES if asked.quick else SHAPES)
    asked.rows = asked.rows or ("1,128" if asked.quick else "1,16,128,512")
    if asked.quick:
        asked.rounds, asked.rotate, asked.seconds = min(asked.rounds, 3), min(asked.rotate, 100), 5.0
    return asked


def main() -> None:
    """Makes the environments, measures case by case and prints a table for each."""
    asked = parsed()
    peers = chosen(COUNTERPARTS, asked.peers, "peer")
    for peer in peers:
        peer_python(peer)
    if asked.install:
        return
    torch.set_num_threads(asked.threads)
    console, about, cases = wide_console(150), machine(), []
    console.print(head_line(about))
    for shape in asked.shapes.split(","):
        for rows in (int(number) for number in asked.rows.split(",")):
            cases.append(case_of(peers, shape, rows, asked, console))
            if asked.json is not None:
                options = {key: str(value) for key, value in vars(asked).items()}
                asked.json.write_text(json.dumps({"machine": about, "asked": options, "cases": cases}, indent=1) + "\n")
    console.print("; ".join(f"{name} {number}" for name, number in sorted(cases[-1]["versions"].items())))


if __name__ == "__main__":
    main()
