"""The program's server, asked by OpenAI's client over loopback."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

import channelwise
from tests.serving.conftest import POSITIONS, SECONDS, Server

MODEL = "tiny-w8a8"
PROMPT = "the cat sees"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def completed(client: openai.OpenAI, prompt: str = PROMPT, **more: Any) -> str:
    return client.completions.create(**{"model": MODEL, "prompt": prompt, "max_tokens": 16, **more}).choices[0].text


def streamed(client: openai.OpenAI, prompt: str = PROMPT, **more: Any) -> str:
    chunks = client.completions.create(
        **{"model": MODEL, "prompt": prompt, "max_tokens": 16, "stream": True, **more}  # type: ignore[arg-type]
    )
    return "".join(chunk.choices[0].text for chunk in chunks)


def generated(checkpoint: Path, prompt: str, tokens: int) -> str:
    """What `channelwise generate` adds to the prompt."""
    return channelwise.generate(checkpoint, prompt, max_tokens=tokens).text.removeprefix(prompt)


def test_the_model_is_listed_by_its_directorys_name(client: openai.OpenAI, checkpoint: Path) -> None:
    assert checkpoint.name == MODEL
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_completion_is_what_generate_says(client: openai.OpenAI, checkpoint: Path) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == generated(checkpoint, PROMPT, 24)
    assert (answer.model, answer.choices[0].finish_reason) == (MODEL, "length")


def test_without_a_template_chat_is_plain_lines(client: openai.OpenAI, checkpoint: Path, server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=24, temperature=0)
    lines = "system: Be brief.\nuser: Hello\nassistant:"
    assert answer.choices[0].message.content == generated(checkpoint, lines, 24)
    assert answer.choices[0].message.role == "assistant"
    assert "no chat template" in server.said


def test_chat_in_pieces_adds_up_to_chat_as_a_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=200, temperature=0)
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=200, temperature=0, stream=True)
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_completion_in_pieces_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    assert streamed(client, max_tokens=200) == completed(client, max_tokens=200)


def test_a_stream_says_when_it_is_over(client: openai.OpenAI) -> None:
    body = {"prompt": PROMPT, "max_tokens": 3, "stream": True}
    lines = list(client.post("/completions", body=body, cast_to=str).split("\n\n"))
    assert lines[-2:] == ["data: [DONE]", ""]


def test_the_usage_counts_tokens(client: openai.OpenAI) -> None:
    usage = client.completions.create(model=MODEL, prompt="a", max_tokens=5).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 5, 6)


def test_an_answer_ends_where_the_model_does(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=10 * POSITIONS)
    assert answer.usage is not None and answer.usage.total_tokens == POSITIONS
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("ask", [completed, streamed])
def test_an_answer_ends_before_a_stop(client: openai.OpenAI, ask: Any) -> None:
    text = completed(client, max_tokens=40)
    stop = text[len(text) // 2 :][:2]
    assert ask(client, max_tokens=40, stop=["never", stop]) == text[: text.index(stop)]


def test_a_seed_makes_a_sampled_answer_repeatable(client: openai.OpenAI) -> None:
    answers = [completed(client, temperature=1, seed=seed) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    assert answers[0] != completed(client, temperature=0)


def test_requests_at_once_get_each_its_own_answer(client: openai.OpenAI) -> None:
    prompts = ["the cat", "a dog", "river", "home was", "under the", "quick", "blue and", "far"]
    expected = [completed(client, prompt, temperature=1, seed=place) for place, prompt in enumerate(prompts)]

    def ask(place: int) -> str:
        way = streamed if place % 2 else completed
        return way(client, prompts[place], temperature=1, seed=place)

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, range(len(prompts)), timeout=SECONDS)) == expected


def cancelled(server: Server, after: int) -> int:
    """How many tokens an answer had that its client gave up."""
    return int(server.wait_for(r"(\d+) written.*; cancelled by the client", after)[1])


def test_a_cancelled_stream_ends_its_generation(client: openai.OpenAI, server: Server) -> None:
    before = len(server.said)
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=POSITIONS, stream=True)
    next(iter(stream))
    stream.close()
    assert 0 < cancelled(server, before) < POSITIONS - 10
    assert completed(client)


def left_behind(server: Server, body: str, length: int) -> None:
    """Sends a request that says how long its body is, and closes the connection."""
    address = urlsplit(server.url)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=SECONDS) as connection:
        connection.sendall((head + body).encode())


def test_a_client_that_leaves_amid_its_request_harms_nothing(client: openai.OpenAI, server: Server) -> None:
    left_behind(server, '{"prompt": ', length=1000)
    assert completed(client)


def test_a_client_that_leaves_ends_its_generation(client: openai.OpenAI, server: Server) -> None:
    before = len(server.said)
    body = json.dumps({"prompt": PROMPT, "max_tokens": POSITIONS})
    left_behind(server, body, len(body))
    assert cancelled(server, before) < POSITIONS - 10
    assert completed(client)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completions", b'{"prompt": '),
        ("/completions", b"[1]"),
        ("/completions", b'{"max_tokens": 3}'),
        ("/completions", b'{"prompt": ""}'),
        ("/completions", b'{"prompt": "a", "temperature": "hot"}'),
        ("/completions", b'{"prompt": "a", "unheard_of": 1}'),
        ("/completions", json.dumps({"prompt": "the cat " * POSITIONS}).encode()),
        ("/chat/completions", b'{"messages": []}'),
        ("/chat/completions", b'{"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}'),
        ("/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}'),
        ("/elsewhere", b"{}"),
        ("/models", b"{}"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_gets_one_line_and_harms_nothing(
    client: openai.OpenAI, server: Server, path: str, body: bytes, stream: bool
) -> None:
    if stream:
        body = body.replace(b"{", b'{"stream": true, ', 1)
    before = len(server.said)
    with pytest.raises(openai.APIStatusError) as refused:
        client.post(path, content=body, cast_to=object, options={"headers": {"Content-Type": "application/json"}})
    assert 400 <= refused.value.status_code < 500
    message = refused.value.body["message"]  # type: ignore[index]
    assert message and "\n" not in message
    assert server.wait_for(re.escape(message), before)
    assert "Traceback" not in server.said
    assert completed(client, max_tokens=1)


def test_too_long_a_prompt_is_told_with_both_lengths(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{POSITIONS} positions") as refused:
        completed(client, "a" * POSITIONS)
    assert refused.value.code == "context_length_exceeded"


def test_another_models_name_is_refused_with_the_name_that_is_there(client: openai.OpenAI) -> None:
    for ask in (lambda: completed(client, model="gpt-5"), lambda: client.models.retrieve("gpt-5")):
        with pytest.raises(openai.NotFoundError, match=f"'gpt-5'.*{MODEL}") as refused:
            ask()
        assert refused.value.code == "model_not_found"
