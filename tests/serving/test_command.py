"""`channelwise serve` from its start to its end."""

import importlib.util
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from channelwise.cli import process
from tests.cli import tiny
from tests.serving.conftest import POSITIONS, Server


def test_interrupted_amid_a_stream_it_ends_well(start: Callable[..., Server], checkpoint: Path) -> None:
    server = start(checkpoint, "--name", "my-model", "--dtype", "bfloat16")
    stream = server.client().completions.create(model="my-model", prompt="a", max_tokens=POSITIONS, stream=True)
    next(iter(stream))
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="the server is stopping"):
        list(stream)
    assert server.ended() == 0
    assert server.said.endswith("; the server is stopping\nstopped\n")
    assert server.process.stdout is not None and server.process.stdout.read() == ""


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the program leaves with status 2."""
    capsys.readouterr()
    assert process.run(["serve", *map(str, arguments)]) == process.BAD_INPUT
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and stderr.count("\n") == 1
    return stderr


def test_a_port_in_use_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, "/no/such/model", "--port", port)
    assert line.startswith(f"error: port {port} of 127.0.0.1 cannot be had")


def test_a_host_that_is_not_here_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--host not/a/host" in refused(capsys, "demo", "--host", "not/a/host", "--port", 0)


def test_a_missing_extra_is_told_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert 'uvicorn; `pip install "channelwise[serve]"`' in refused(capsys, "demo")


def test_a_model_that_does_not_generate_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bert = tiny.saved(tiny.bert(), tiny.word_tokenizer(), tmp_path / "bert")
    assert "BertModel does not generate text" in refused(capsys, bert, "--port", 0)


def test_a_model_without_a_tokenizer_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = tiny.saved(tiny.llama(), None, tmp_path / "bare")
    assert "has no tokenizer.json" in refused(capsys, bare, "--port", 0)


def test_an_unknown_dtype_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dtype int8 is none of auto, " in refused(capsys, "demo", "--port", 0, "--dtype", "int8")
