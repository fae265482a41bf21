"""Whole models: ours beside llama.cpp, the same shape with random weights, tokens per second.

    python benchmarks/cpu/models_llama_cpp.py [--size 1b] [--types BF16,Q8_0,Q4_0,Q3_K_M] [--threads 2] [--json FILE]

llama.cpp's models are made once, in build/bench_cpu/gguf (2.2 GB for the BF16 one of 1b, which llama.cpp quantizes), in
the environment of `peers.py`. Each side runs in a process of its own: `models.py` before the first type and after the
last, llama.cpp's types in between. Prefill and decoding mean what they mean in `models.py`; llama.cpp's decoding is
llama_decode and an argmax per token. llama.cpp quantizes the output layer too (Q6_K, or Q8_0): --head gives ours one of
8 bits. MB are of the whole file there, of the blocks' linear layers here.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from environments import FOLDER, HERE, peer_python
from llama import HEADS, SIZES, VOCABULARY
from rich.table import Table
from sides import PeerDiedError, process
from timing import Timing, head_line, machine, wide_console

GGUF = FOLDER.parent / "gguf"
FLOATING = "BF16"
SCRIPT = str(HERE / "run_llama_cpp_model.py")


def peer(job: dict[str, Any], threads: int) -> dict[str, Any]:
    """One job of llama.cpp. Raises PeerDiedError."""
    return json.loads(process([str(peer_python("llama_cpp")), SCRIPT], json.dumps(job), threads))


def model_file(size: str, kind: str, threads: int) -> Path:
    """The GGUF of a type, made where it is missing."""
    path = GGUF / f"{size}-{kind}.gguf"
    if path.exists():
        return path
    GGUF.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    if kind == FLOATING:
        sizes = {**SIZES[size], "num_attention_heads": HEADS[size], "vocab_size": VOCABULARY}
        peer({"action": "make", "path": str(half), **sizes}, threads)
    else:
        floating = str(model_file(size, FLOATING, threads))
        peer({"action": "quantize", "path": floating, "output": str(half), "type": kind}, threads)
    return half.rename(path)


def ours(asked: argparse.Namespace) -> dict[str, Any]:
    """Our models' figures by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ours.json"
        command = [sys.executable, str(HERE / "models.py"), *(["--head"] if asked.head else []), "--json", str(file)]
        for name in ("size", "recipes", "threads", "rounds", "prompt", "new"):
            command += [f"--{name}", str(getattr(asked, name))]
        process(command, "", asked.threads)
        return json.loads(file.read_text())["models"]


def our_rows(runs: list[dict[str, Any]], asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Our models over all runs."""
    found = {}
    for name, first in runs[0].items():
        times = {
            kind: [1e-6 * each for run in runs for each in run[name][kind]["microseconds"]]
            for kind in ("prefill", "decode")
        }
        found[f"ours {name}"] = row(times, first["linear_bytes"], asked)
    return found


def row(times: dict[str, list[float]], size: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of both, and every time."""
    tokens = {"prefill": asked.prompt, "decode": asked.new - 1}
    speeds = {f"{kind}_tokens_s": tokens[kind] / Timing(tuple(times[kind])).median for kind in tokens}
    fastest = {
        f"{kind}_range_tokens_s": [tokens[kind] / max(times[kind]), tokens[kind] / min(times[kind])] for kind in tokens
    }
    return {**speeds, **fastest, "bytes": size, "seconds": times}


def table_of(found: dict[str, dict[str, Any]], title: str) -> Table:
    """All models."""
    table = Table(title=title)
    table.add_column("model", no_wrap=True)
    for heading in ("prefill t/s", "range", "decode t/s", "range", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in found.items():
        cells = []
        for kind in ("prefill", "decode"):
            low, high = each[f"{kind}_range_tokens_s"]
            cells += [f"{each[f'{kind}_tokens_s']:,.1f}", f"{low:,.1f}–{high:,.1f}"]
        table.add_row(name, *cells, f"{each['bytes'] / 1e6:,.0f}")
    return table


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--types", default="BF16,Q8_0,Q4_0,Q4_K_M,Q3_K_M,Q2_K")
    parser.add_argument("--recipes", default="bf16,w8a8,w4a8,w4,w3", help="of models.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="of each process")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--head", action="store_true", help="ours with an output layer of 8 bits")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Makes the files, measures and prints one table."""
    asked = parsed()
    console = wide_console()
    files, missing = {}, {}
    for kind in asked.types.split(","):
        try:
            files[kind] = model_file(asked.size, kind, asked.threads)
        except PeerDiedError as error:
            missing[kind] = str(error)
    torch.set_num_threads(asked.threads)
    about = machine()
    console.print(head_line(about))
    runs, peers = [ours(asked)], {}
    for kind, path in files.items():
        job = {name: getattr(asked, name) for name in ("threads", "rounds", "prompt", "new")}
        try:
            times = peer({"action": "time", "path": str(path), "vocab_size": VOCABULARY, **job}, asked.threads)
        except PeerDiedError as error:
            missing[kind] = str(error)
            continue
        peers[f"llama.cpp {kind}"] = row(times, times["bytes"], asked)
    runs.append(ours(asked))
    found = {**our_rows(runs, asked), **peers}
    console.print(table_of(found, f"Llama {asked.size}, prefill of {asked.prompt}, {asked.new} new tokens, medians"))
    for kind, why in missing.items():
        console.print(f"not measured: llama.cpp {kind}: {why}", markup=False)
    if asked.json is not None:
        asked.json.write_text(json.dumps({"machine": about, "models": found, "missing": missing}, indent=1) + "\n")


if __name__ == "__main__":
    main()
