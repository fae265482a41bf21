"""A tiny quantized model behind the program's own server, and OpenAI's client in front of it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import channelwise
from tests.cli import tiny
from tests.conftest import IN_CI

POSITIONS = 1024
"""Of the served model: enough that an answer is still in the making when a test gives it up."""

SECONDS = 120
"""How long anything may take on a busy machine; never how long it should."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the extra the tests cannot run: a user's machine skips them, CI does not."""
    try:
        import fastapi  # noqa: F401
        import openai  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        if IN_CI:
            raise
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f'{error.name} is missing; pip install "channelwise[serve]"'))


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Server:
    """`channelwise serve` as a process: where it listens, and what it has said."""

    def __init__(self, *arguments: object):
        command = [sys.executable, "-m", "channelwise", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            # a background shell ignores it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"curl (http\S+)/chat/completions").group(1)

    @property
    def said(self) -> str:
        with self._more:
            return "".join(self._lines)

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """The first match in what it said after that many characters."""
        found: re.Match[str] | None = None

        def there() -> bool:
            nonlocal found
            found = re.compile(pattern).search("".join(self._lines), after)
            return found is not None or self.process.poll() is not None

        with self._more:
            self._more.wait_for(there, timeout=SECONDS)
        assert found is not None, f"no {pattern!r} in: {self.said}"
        return found

    def client(self) -> Any:
        """OpenAI's; a refusal is not asked again."""
        import openai

        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=SECONDS)

    def stop(self, number: int) -> int:
        """The exit status after a signal."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """The exit status, once everything that was said is read."""
        status = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()
        with self._more:
            self._more.notify_all()


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends those that a test left running."""
    started: list[Server] = []

    def begin(*arguments: object) -> Server:
        started.append(Server(*arguments))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(SECONDS)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in W8A8 whose tokenizer has no chat template, and which never ends by itself."""
    folder = tmp_path_factory.mktemp("served")
    model = tiny.llama(max_position_embeddings=POSITIONS, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    source = tiny.saved(model, tiny.byte_tokenizer(), folder / "tiny")
    output = folder / "tiny-w8a8"
    channelwise.quantize(source, recipe="rtn-w8a8", data=tiny.sentences(200), output=output, samples=4, length=64)
    return output


@pytest.fixture(scope="session")
def server(start: Callable[..., Server], checkpoint: Path) -> Iterator[Server]:
    """One for all who only ask; whatever they asked, it ends well."""
    server = start(checkpoint)
    yield server
    assert server.stop(signal.SIGTERM) == 0
    assert server.said.endswith("\nstopped\n") and "Traceback" not in server.said


@pytest.fixture
def client(server: Server) -> Any:
    return server.client()
