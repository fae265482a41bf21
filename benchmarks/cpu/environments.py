"""An environment of its own for every peer, made once, from PyPI: PEER.txt lists what it holds."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "build" / "bench_cpu" / "environments"

BUILD: dict[str, dict[str, str]] = {
    "llama_cpp": {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS=-fno-tree-dse\\ -fno-dse",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
        "PIP_NO_CACHE_DIR": "1",
    }
}
"""What sources are built with. gcc 12 takes the stores to AMX's tile configuration for dead, as its intrinsic does not
tell that the whole of it is read, and ggml then dies at the first product of two rows: hence no elimination of dead
stores."""


def peer_python(peer: str) -> Path:
    """The Python of a peer's environment, which is made where it is missing or of other versions.

    torch is installed first: with the others, pip might fetch builds of it that are not wanted. Raises
    CalledProcessError where pip fails.
    """
    folder, requirements = FOLDER / peer, HERE / f"{peer}.txt"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = requirements.read_text() + "".join(f"# {key}={value}\n" for key, value in BUILD.get(peer, {}).items())
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {peer} in {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    first = [line for line in wanted.splitlines() if line.startswith("torch==")]
    for what in ([first] if first else []) + [["--requirement", str(requirements)]]:
        environment = {**os.environ, **BUILD.get(peer, {})}
        subprocess.run([python, "-m", "pip", "install", "-qq", *what], check=True, env=environment)
    stamp.write_text(wanted)
    return python
