"""The application on a socket, and the end of both."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from channelwise.serving.app import Paths
from channelwise.serving.generation import Generator
from channelwise.serving.served import Served

_SECONDS_TO_CLOSE = 5
"""How long connections may take to close once generation has been told to stop."""


def run(served: Served, bound: socket.socket, say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, in the main thread. say: gets a line for each answer and each refusal."""
    generator = Generator(served.model, lambda finished: say(finished.line()))
    config = uvicorn.Config(
        Paths(served, generator, say).app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
    )
    try:
        _Server(config, generator).run(sockets=[bound])
    except KeyboardInterrupt:
        # uvicorn raises the signal again once it has shut down
        pass
    finally:
        generator.close()


class _Server(uvicorn.Server):
    """Gives up what is being generated when it is told to stop, so that connections close at once."""

    def __init__(self, config: uvicorn.Config, generator: Generator):
        super().__init__(config)
        self._generator = generator

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._generator.stop()
        super().handle_exit(sig, frame)
