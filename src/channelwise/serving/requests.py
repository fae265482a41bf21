"""What a client may ask for: bodies of requests, read and checked, and in one line what is wrong with them.

Fields that would change the answer and that are not supported are refused rather than ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

_LOWEST_TEMPERATURE = 1e-3
"""Below it sampling always draws the likeliest token, and dividing by it would overflow."""

_StopText = Annotated[str, Field(min_length=1)]
_SINGLE = Literal[1]


class RequestError(Exception):
    """A request that is not answered: HTTP status, one line, and OpenAI's code for it, if it has one."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(" ".join(message.split()))
        self.status = status
        self.code = code


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """What a client of OpenAI's reads an error from."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class _Fields(BaseModel):
    """Unknown fields are kept: transformers knows them, or refuses them by name."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Request(_Fields):
    """What chat and completions share."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: _StopText | list[_StopText] | None = None
    # transformers makes it a repetition penalty of 1 + this, which has to be positive
    frequency_penalty: float | None = Field(None, gt=-1, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    n: _SINGLE | None = None
    generation_config: None = None


class _Part(_Fields):
    type: Literal["text"]
    text: str


class _Message(_Fields):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing")
        return self


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions."""

    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    logprobs: Literal[False] | None = None
    # plain values only: a template that a client sends would be a program
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_template(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and "chat_template" in value:
            raise ValueError("the template is the served model's own")
        return value


class CompletionRequest(_Request):
    """The body of POST /v1/completions."""

    prompt: str
    best_of: _SINGLE | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        """Some clients put their one prompt into a list."""
        if isinstance(value, list):
            if len(value) != 1 or not isinstance(value[0], str):
                raise ValueError("give one prompt, as text")
            return value[0]
        return value


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: sampled or not, None as the model's own configuration says; where text ends."""

    sampled: bool | None
    seed: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A checked request: the model's name or None, what transformers' handler gets, and what is done here."""

    model: str | None
    body: dict[str, Any]
    sampling: Sampling


def read_request(kind: type[_Request], body: bytes) -> Asked:
    """The request in a body. Raises RequestError with status 400, naming the field, for anything else."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(400, _first_problem(error)) from error
    entries = request.model_dump(exclude_none=True)
    # Both are handled where the tokens are made: a seed that is set when the request arrives would disturb the answer
    # in the making, and OpenAI's stop is not part of the answer.
    seed, stop = entries.pop("seed", None), entries.pop("stop", ())
    if request.temperature is not None and request.temperature < _LOWEST_TEMPERATURE:
        entries["temperature"] = 0.0
    return Asked(
        model=request.model,
        body=entries,
        sampling=Sampling(_sampled(entries), seed, (stop,) if isinstance(stop, str) else tuple(stop)),
    )


def _sampled(entries: dict[str, Any]) -> bool | None:
    """Who gives a temperature wants it used, whatever the model's configuration says."""
    temperature = entries.get("temperature")
    if temperature is None:
        return True if "top_p" in entries else None
    return bool(temperature > 0)


def _first_problem(error: ValidationError) -> str:
    """The problem that lies deepest: of a choice of types, the one that was meant."""
    problem = max(error.errors(), key=lambda found: len(_path(found["loc"])))
    if problem["type"] == "json_invalid":
        return f"the body is not valid JSON ({problem['ctx']['error']})"
    where = ".".join(_path(problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else f"the body is not a JSON object: {message}"


def _path(location: Sequence[int | str]) -> list[str]:
    """The names of fields and the places in lists, without pydantic's names of types."""
    types = ("str", "constrained-str", "int", "float", "bool")
    return [str(part) for part in location if isinstance(part, int) or not (part in types or "[" in part)]
