"""Answers in the making: one thread makes them one after the other, whoever asked may give them up."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from channelwise.serving.growing import GrowingText

CANCELLED = "cancelled by the client"
STOPPING = "the server is stopping"


@dataclass(frozen=True)
class Finished:
    """How an answer ended. seconds: from its first work to its end. problem: None if it is whole."""

    prompt_tokens: int
    tokens: int
    seconds: float
    problem: str | None

    def line(self) -> str:
        """For the log."""
        rate = f" in {self.seconds:.2f} s, {self.tokens / self.seconds:.1f} a second" if self.tokens else ""
        problem = f"; {self.problem}" if self.problem else ""
        return f"{self.prompt_tokens} tokens read, {self.tokens} written{rate}{problem}"


class Answer:
    """One answer: transformers' streamer on the thread that makes it, a queue of items in the event loop.

    The queue gets what `translate` makes of the text, then None, or instead of it what `failed` makes of a reason.
    Made in the event loop; put, end and criterion are for the thread; cancel is for any thread.
    """

    def __init__(
        self,
        text: GrowingText,
        prompt_tokens: int,
        translate: Callable[[str | None], Sequence[Any]],
        failed: Callable[[str], Any],
    ):
        self.text = text
        self.pieces: list[str] = []
        self.problem: str | None = None
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.prompt_tokens = prompt_tokens
        self._translate = translate
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._prompt_seen = False
        self._given_up = threading.Event()
        self._ending = threading.RLock()  # a signal may stop the server while its thread cancels
        self._finished = False

    @property
    def total_tokens(self) -> int:
        """How many tokens there are, under the name that transformers' handlers ask for."""
        return len(self.text.tokens)

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up.is_set()

    def cancel(self, reason: str = CANCELLED) -> None:
        """No token is made after the one in the making; a finished answer stays as it is."""
        with self._ending:
            if not self._finished and self.problem is None:
                self.problem = reason
                self._given_up.set()

    def put(self, value: torch.Tensor) -> None:
        """From generate: the prompt first, then token by token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.tolist():
            self._say(self.text.add(token))

    def end(self) -> None:
        """From generate, after the last token; `finish` says it to the others."""

    def criterion(self) -> StoppingCriteria:
        """Ends generate once the answer is given up or has met a stop."""
        return _Ended(self)

    def finish(self) -> None:
        """The rest of the text, and that nothing follows."""
        try:
            if not self.given_up:
                self._say(self.text.rest())
                self._send(self._translate(None))
        except Exception as error:  # a template of the model's own that does not fit its text
            self.cancel(_reason(error))
        with self._ending:
            self._finished = True
        self._send([None if self.problem is None else self._failed(self.problem)])

    def _say(self, piece: str) -> None:
        if piece and not self.given_up:
            self.pieces.append(piece)
            self._send(self._translate(piece))

    def _send(self, items: Sequence[Any]) -> None:
        for item in items:
            try:
                self._loop.call_soon_threadsafe(self.queue.put_nowait, item)
            except RuntimeError:  # the loop is closed: the server has stopped, nobody reads on
                return


class _Ended(StoppingCriteria):
    def __init__(self, answer: Answer):
        self._answer = answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        ended = self._answer.given_up or self._answer.text.ended
        return torch.full((input_ids.shape[0],), ended, dtype=torch.bool, device=input_ids.device)


class Generator:
    """The thread that makes answers, in the order in which they were asked for.

    report: gets how each ended, on that thread.
    """

    def __init__(self, model: Any, report: Callable[[Finished], None]):
        self._model = model
        self._report = report
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")
        self._waiting: set[Answer] = set()
        self._stopping = False

    def start(
        self, answer: Answer, inputs: dict[str, torch.Tensor], config: GenerationConfig, seed: int | None
    ) -> None:
        """Puts an answer at the end of the line. inputs: of one prompt, [1, T]. Called in the event loop."""
        self._waiting.add(answer)
        if self._stopping:
            answer.cancel(STOPPING)
        self._pool.submit(self._make, answer, inputs, config, seed)

    def stop(self) -> None:
        """Gives up every answer, those to come as well; returns at once."""
        self._stopping = True
        for answer in tuple(self._waiting):
            answer.cancel(STOPPING)

    def close(self) -> None:
        """Waits for the token in the making, if any, and ends the thread."""
        self.stop()
        self._pool.shutdown(wait=True)

    def _make(
        self, answer: Answer, inputs: dict[str, torch.Tensor], config: GenerationConfig, seed: int | None
    ) -> None:
        started = time.perf_counter()
        try:
            if not answer.given_up:
                with _seeded(seed):
                    self._model.generate(
                        **inputs,
                        generation_config=config,
                        streamer=answer,
                        stopping_criteria=StoppingCriteriaList([answer.criterion()]),
                    )
        except Exception as error:  # whatever it was, the client is told and the next one is served
            answer.cancel(_reason(error))
        finally:
            seconds = time.perf_counter() - started
            answer.finish()
            self._waiting.discard(answer)
            self._report(Finished(answer.prompt_tokens, answer.total_tokens, seconds, answer.problem))


def _reason(error: Exception) -> str:
    return f"generation failed: {type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Random numbers from the seed, and those of the others as if nothing had been."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
