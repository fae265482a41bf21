"""Paths of the server: OpenAI's, for one model, and errors in OpenAI's shape, one line each."""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from channelwise.serving.answering import RequestGeneration
from channelwise.serving.generation import Generator
from channelwise.serving.requests import ChatRequest, CompletionRequest, RequestError, error_body, read_request
from channelwise.serving.served import Served

_GIVEN_UP = 499
"""What proxies log for a client that went away; nobody gets it."""

_REQUESTS_FAULT = (ValueError, TypeError, KeyError, IndexError, AttributeError, TemplateError)
"""What transformers raises for messages, tools or a template's arguments that do not fit, before it generates."""


@dataclass(frozen=True)
class Paths:
    """The answers to each path. say: gets a line for the log for each refusal."""

    served: Served
    generator: Generator
    say: Callable[[str], None]
    started: int = field(default_factory=lambda: int(time.time()))

    def app(self) -> Starlette:
        """The application for an ASGI server."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            RequestError: self._refused,
            HTTPException: self._refused,
            ClientDisconnect: self._left,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._entry()]})

    async def _model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._entry())

    async def _chat(self, request: Request) -> Any:
        return await self._answer(request, ChatRequest)

    async def _completions(self, request: Request) -> Any:
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: type[ChatRequest] | type[CompletionRequest]) -> Any:
        asked = read_request(kind, await request.body())
        self._check_name(asked.model)
        generation = RequestGeneration(self.served, self.generator, asked.sampling)
        response = asyncio.ensure_future(generation.respond(kind, asked, uuid.uuid4().hex))
        # Nothing is left to receive but that the client goes away.
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({response, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not response.done():
                return Response(status_code=_GIVEN_UP)
            return _Kept(_response(response), generation)
        finally:
            gone.cancel()
            if not response.done():
                generation.cancel()
                response.cancel()

    def _check_name(self, name: str | None) -> None:
        """The only model there is may be left unnamed. Raises RequestError for another one."""
        if name is not None and name != self.served.name:
            message = f"there is no model {name!r} here: this server has {self.served.name!r}"
            raise RequestError(404, message, "model_not_found")

    def _entry(self) -> dict[str, Any]:
        entry = {"id": self.served.name, "object": "model", "created": self.started, "owned_by": "channelwise"}
        return entry if self.served.limit is None else {**entry, "max_model_len": self.served.limit}

    async def _refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, RequestError):
            status, message, code = error.status, str(error), error.code
        else:
            assert isinstance(error, HTTPException)
            status, message, code = error.status_code, " ".join(str(error.detail).split()), None
            if error.detail in ("Not Found", "Method Not Allowed"):
                message = (
                    f"there is no {request.method} {request.url.path} here: "
                    "POST to /v1/chat/completions or /v1/completions, GET /v1/models"
                )
        self.say(f"{request.method} {request.url.path}: {status} {message}")
        return JSONResponse(error_body(status, message, code), status)

    async def _left(self, request: Request, error: Exception) -> Response:
        return Response(status_code=_GIVEN_UP)


class _Kept:
    """A response whose generation ends with it, however it ends."""

    def __init__(self, response: Response, generation: RequestGeneration):
        self._response = response
        self._generation = generation
        if isinstance(response, StreamingResponse):
            response.body_iterator = generation.events(response.body_iterator)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._generation.cancel()


def _response(done: asyncio.Future[Any]) -> Response:
    """Raises RequestError for everything that went wrong."""
    try:
        result: Response = done.result()
    except (RequestError, HTTPException):
        raise
    except _REQUESTS_FAULT as error:
        reason = str(error) if isinstance(error, ValueError | TemplateError) else f"{type(error).__name__}: {error}"
        raise RequestError(400, f"the request does not fit the model: {reason}") from error
    except Exception as error:
        raise RequestError(500, f"{type(error).__name__}: {error}") from error
    return result
