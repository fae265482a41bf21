"""What a request may hold, and what is said about the others."""

import json
from typing import Any

import pytest

from channelwise.serving.requests import ChatRequest, CompletionRequest, RequestError, read_request

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": HELLO, **fields}).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"prompt": "Hello", **fields}).encode()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "the body is not valid JSON"),
        (b'{"messages": [', "the body is not valid JSON"),
        (b"\xff\xfe", "the body is not valid JSON"),
        (b"[]", "the body is not a JSON object"),
        (b"{}", "messages: Field required"),
        (chat(messages=[]), "messages: "),
        (chat(messages="Hello"), "messages: "),
        (chat(messages=[{"content": "Hello"}]), "messages.0.role: Field required"),
        (chat(messages=[*HELLO, {"role": "user"}]), "messages.1: content is missing"),
        (chat(messages=[{"role": "robot", "content": "Hello"}]), "messages.0.role: "),
        (chat(messages=[{"role": "user", "content": 3}]), "messages.0.content: "),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content.0."),
        (chat(model=1), "model: "),
        (chat(max_tokens=0), "max_tokens: "),
        (chat(max_tokens="ten"), "max_tokens: "),
        (chat(max_completion_tokens=1.5), "max_completion_tokens: "),
        (chat(temperature=-0.1), "temperature: "),
        (chat(temperature=True), "temperature: "),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature: "),
        (chat(top_p=0), "top_p: "),
        (chat(seed=2**63), "seed: "),
        (chat(stop=""), "stop: "),
        (chat(stop=["a", 2]), "stop.1: "),
        (chat(stream="yes"), "stream: "),
        (chat(frequency_penalty=-1), "frequency_penalty: "),
        (chat(logit_bias={"x": 1}), "logit_bias.x: "),
        (chat(chat_template_kwargs={"chat_template": "x"}), "chat_template_kwargs: the template is"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_that_names_the_place(body: bytes, place: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_request(ChatRequest, body)
    assert refused.value.status == 400
    assert str(refused.value).startswith(place) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"logprobs": True}, {"presence_penalty": 1}, {"tool_choice": "required"}, {"generation_config": "{}"}],
)
def test_what_would_change_an_answer_and_is_not_supported_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(fields))}: "):
        read_request(ChatRequest, chat(**fields))


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"echo": True}, {"logprobs": 1}, {"suffix": "x"}])
def test_so_it_is_for_completions(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(fields))}: "):
        read_request(CompletionRequest, completion(**fields))


@pytest.mark.parametrize("prompt", [3, None, [1, 2], ["a", "b"], [], [["a"]]])
def test_a_prompt_is_one_text(prompt: Any) -> None:
    with pytest.raises(RequestError, match=r"^prompt: "):
        read_request(CompletionRequest, completion(prompt=prompt))


def test_one_prompt_may_come_in_a_list() -> None:
    assert read_request(CompletionRequest, completion(prompt=["Hello"])).body["prompt"] == "Hello"


@pytest.mark.parametrize(
    ("fields", "sampled"),
    [
        ({}, None),
        ({"seed": 1}, None),
        ({"temperature": 0}, False),
        ({"temperature": 1e-40}, False),
        ({"temperature": 0.5}, True),
        ({"top_p": 0.9}, True),
        ({"top_p": 0.9, "temperature": 0}, False),
    ],
)
def test_a_temperature_samples_and_none_leaves_it_to_the_model(fields: dict[str, Any], sampled: bool | None) -> None:
    assert read_request(ChatRequest, chat(**fields)).sampling.sampled is sampled


def test_seed_and_stop_do_not_reach_transformers() -> None:
    asked = read_request(ChatRequest, chat(seed=7, stop="end", model="tiny", user="me"))
    assert (asked.model, asked.sampling.seed, asked.sampling.stop) == ("tiny", 7, ("end",))
    assert asked.body == {"messages": HELLO, "model": "tiny", "user": "me"}
