"""The seam to transformers: its handlers read a request's messages and write OpenAI's answers, tokens come from here.

What is relied on: `ChatCompletionHandler` and `CompletionHandler` with `handle_request`, which ask a `ModelManager` for
the model and a `GenerationState` for the manager of one request, and what that manager hands back to them.
tests/serving/test_seam.py holds transformers to it.
"""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any

from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    GenerationState,
    _StreamError,
    get_response_template,
    response_events_to_chunks,
)

from channelwise.errors import InputError
from channelwise.model.batches import accepted, check_vocabulary
from channelwise.serving.generation import STOPPING, Answer, Generator
from channelwise.serving.growing import GrowingText
from channelwise.serving.requests import Asked, ChatRequest, CompletionRequest, RequestError, Sampling, error_body
from channelwise.serving.served import Served

HANDLERS: dict[type, Any] = {ChatRequest: ChatCompletionHandler, CompletionRequest: CompletionHandler}


class RequestGeneration(BaseGenerateManager):
    """One request's way from token ids to text."""

    def __init__(self, served: Served, generator: Generator, sampling: Sampling):
        self._served = served
        self._generator = generator
        self._sampling = sampling
        self._answer: Answer | None = None

    async def respond(self, kind: type[ChatRequest] | type[CompletionRequest], asked: Asked, request_id: str) -> Any:
        """A response of starlette's. Raises RequestError, or fastapi's HTTPException, for what cannot be answered."""
        handler = HANDLERS[kind](_OneModel(self._served), _OneRequest(self))
        return await handler.handle_request(asked.body, request_id)

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue[Any], Any]:
        """For transformers' handlers: a queue of pieces that ends with None, and what counts and cancels."""
        answer = self._start(inputs, gen_config, _through(response_parser), keep_special=response_parser is not None)
        if response_parser is not None:
            for item in response_events_to_chunks(response_parser.initial_events):
                answer.queue.put_nowait(item)
        return answer.queue, answer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """For transformers' handlers: the text, the prompt's length and the tokens."""
        answer = self._start(inputs, gen_config, _through(None))
        while (item := await answer.queue.get()) is not None:
            if isinstance(item, _StreamError):
                raise RequestError(_status(item.msg), item.msg)
        return "".join(answer.pieces), answer.prompt_tokens, self._parsed_tokens(answer)

    async def events(self, events: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """A stream as OpenAI has it: its errors are objects, and its end is told."""
        async for event in events:
            problem = None if self._answer is None else self._answer.problem
            if problem is not None:
                event = event.replace(
                    _handlers_error(problem), f"data: {json.dumps(error_body(_status(problem), problem))}"
                )
            yield event
        yield "data: [DONE]\n\n"

    def cancel(self) -> None:
        """Gives the answer up, if it is not finished."""
        if self._answer is not None:
            self._answer.cancel()

    def stop(self) -> None:
        """Part of the manager's interface: there is nothing of one request to stop."""

    def _start(
        self,
        inputs: Any,
        config: Any,
        translate: Callable[[str | None], Sequence[Any]],
        *,
        keep_special: bool = False,
    ) -> Answer:
        ids = inputs["input_ids"]
        self._fit(ids, config)
        text = GrowingText(
            self._served.tokenizer.backend_tokenizer, ids[0].tolist(), self._sampling.stop, keep_special=keep_special
        )
        self._answer = Answer(text, ids.shape[1], translate, _StreamError)
        batch = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
        self._generator.start(self._answer, accepted(self._served.model, batch), config, self._sampling.seed)
        return self._answer

    def _fit(self, ids: Any, config: Any) -> None:
        """Makes the request's configuration what this model can do. Raises RequestError for a prompt it cannot read."""
        length, limit = ids.shape[1], self._served.limit
        if length == 0:
            raise RequestError(400, "the prompt is empty: send some text")
        try:
            check_vocabulary([{"input_ids": ids}], self._served.model, "the prompt")
        except InputError as error:
            raise RequestError(400, str(error)) from error
        if limit is not None:
            if length >= limit:
                message = f"the prompt has {length} tokens, the model {limit} positions: send a shorter prompt"
                raise RequestError(400, message, "context_length_exceeded")
            # the handlers read it again to tell whether the answer was cut
            config.max_new_tokens = min(config.max_new_tokens, limit - length)
        if self._sampling.sampled is not None:
            config.do_sample = self._sampling.sampled
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = None
        config.num_beams = config.num_return_sequences = 1  # as a stream needs it
        if config.pad_token_id is None:
            ends = config.eos_token_id
            config.pad_token_id = (ends[0] if isinstance(ends, list) else ends) or 0

    def _parsed_tokens(self, answer: Answer) -> list[int]:
        """The tokens as the handlers read them again for models with a template of answers: without the stop."""
        tokenizer = self._served.tokenizer
        if not answer.text.ended or get_response_template(tokenizer, self._served.model) is None:
            return answer.text.tokens
        whole = tokenizer.decode(answer.text.tokens, skip_special_tokens=False)
        cut = min((place for place in map(whole.find, self._sampling.stop) if place >= 0), default=len(whole))
        return list(tokenizer(whole[:cut], add_special_tokens=False)["input_ids"])


class _OneModel(ModelManager):
    """Hands out the served model, under its name without a revision; loads nothing."""

    def __init__(self, served: Served):
        super().__init__()
        self.force_model = served.name
        self._served = served

    def load_model_and_processor(self, model_id_and_revision: str, *others: Any, **more: Any) -> tuple[Any, Any]:
        return self._served.model, self._served.tokenizer

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id


class _OneRequest(GenerationState):
    """Hands out one request's own manager, so that its seed and stops go with it."""

    def __init__(self, generation: RequestGeneration):
        super().__init__()
        self._generation = generation

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        return self._generation


def _through(parser: Any) -> Callable[[str | None], Sequence[Any]]:
    """Pieces of text as they are, or as the parser of the model's answers sees them: content, reasoning, calls."""

    def translate(piece: str | None) -> Sequence[Any]:
        if parser is None:
            return [] if piece is None else [piece]
        if piece is not None:
            return list(response_events_to_chunks(parser.feed(piece)))
        try:
            return list(response_events_to_chunks(parser.finalize()[1]))
        except (ValueError, RuntimeError):  # cut within a call, say
            return []

    return translate


def _status(problem: str) -> int:
    return 503 if problem == STOPPING else 500


def _handlers_error(problem: str) -> str:
    """How transformers' handlers stream it."""
    return f'data: {{"error": "{problem}"}}'
