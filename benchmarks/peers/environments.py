"""An environment of its own for a peer, made once; and one side's process, told by a file and answering by one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from channelwise.errors import InputError


def peer_python(folder: Path, requirements: Path) -> Path:
    """The Python of the environment, which is made where it is missing or of other versions; torch is installed first.

    Installing it with the others, pip might look for, and fetch, builds of it that are not wanted.
    """
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = requirements.read_text()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {requirements.stem} in {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    torch_first = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    for what in ([torch_first], ["--requirement", str(requirements)]):
        subprocess.run([python, "-m", "pip", "install", "-qq", *what], check=True)
    stamp.write_text(wanted)
    return python


def run_side(python: Path | str, script: Path, job: dict[str, Any], work: Path) -> dict[str, Any]:
    """One process on the CPU with job["threads"] threads; what it tells, and `weights`, float32 by layer.

    Raises InputError, with the end of what it printed, where it fails.
    """
    path, output, log = (work / f"{script.stem}.{suffix}" for suffix in ("json", "safetensors", "log"))
    path.write_text(json.dumps({**job, "output": str(output)}))
    threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    alone = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as stream:
        done = subprocess.run(
            [str(python), str(script), str(path)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads, **alone},
            cwd=work,  # where a library may leave files
        )
    if done.returncode:
        raise InputError(f"{script.name} failed, see {log}:\n{log.read_text()[-2000:]}")
    with safe_open(output, "pt") as file:
        about = json.loads(file.metadata()["about"])
    return {**about, "weights": load_file(output)}
