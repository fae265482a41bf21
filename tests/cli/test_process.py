"""The program as a process of its own: its start, its interruption, its exit status."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from channelwise.cli import process
from tests.cli import tiny

PROGRAM = (sys.executable, "-m", "channelwise")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("quantize", "--help"), ("demo", "--help")])
def test_help_does_not_import_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; sys.argv = ['channelwise', *sys.argv[1:]]\n"
        "from channelwise.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: channelwise" in done.stdout


def test_importing_the_package_registers_the_plugin() -> None:
    code = "import channelwise; from transformers.quantizers import auto; print(*auto.AUTO_QUANTIZER_MAPPING)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "channelwise" in done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forked children")
def test_a_forked_child_ends_by_a_signal_as_if_nothing_handled_it() -> None:
    """Pools of worker processes are ended by SIGTERM, and waited for."""
    with process._patient_interrupts():
        child = os.fork()
        if child == 0:
            while True:
                with contextlib.suppress(BaseException):
                    time.sleep(60)
        time.sleep(0.3)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
@pytest.mark.parametrize(
    ("moment", "number", "status", "told"),
    [
        ("reading the calibration data", signal.SIGINT, 130, "no output was written"),
        ("block 3 of 24", signal.SIGINT, 130, "--resume goes on"),
        ("block 2 of 24", signal.SIGTERM, 143, "--resume goes on"),
    ],
)
def test_an_interruption_leaves_finished_blocks_and_no_output(
    tmp_path: Path, text: Path, moment: str, number: int, status: int, told: str
) -> None:
    model = tiny.saved(tiny.llama(num_hidden_layers=24), tiny.byte_tokenizer(), tmp_path / "deep")
    before = sorted(tmp_path.rglob("*"))
    arguments = ("quantize", model, "--recipe", "os-plus-w6a6", "--data", text, "--output", tmp_path / "out")
    started = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background shell ignores it
    )
    assert started.stderr is not None
    for line in started.stderr:
        if moment in line:
            break
    started.send_signal(number)
    stdout, stderr = started.communicate(timeout=60)
    assert (started.returncode, stdout) == (status, "")
    assert stderr.splitlines()[-1].startswith("interrupted; ") and stderr.splitlines()[-1].endswith(told)
    assert "Traceback" not in stderr
    left = {path for path in tmp_path.rglob("*") if ".out.unfinished" not in path.parts}
    assert sorted(left) == before
    assert (tmp_path / ".out.unfinished").exists() == ("--resume" in told)
