"""What is relied on in transformers' serving, and a model whose answers transformers takes apart."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from channelwise.serving.served import open_served
from tests.cli import tiny

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<assistant>",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": "[aeiou]", "content": "text"},
        "content": {"close": "<|end|>", "content": "text"},
    },
}
"""A random model thinks up to the first vowel."""


def names(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_transformers_handlers_are_what_the_server_stands_on() -> None:
    from transformers.cli.serving import chat_completion, completion, model_manager, utils

    for handler in (chat_completion.ChatCompletionHandler, completion.CompletionHandler):
        assert names(handler)[:2] == ["model_manager", "generation_state"]
        assert names(handler.handle_request) == ["self", "body", "request_id"]
    inspect.signature(model_manager.ModelManager).bind()
    assert names(model_manager.ModelManager.process_model_name) == ["model_id"]
    assert names(model_manager.ModelManager.load_model_and_processor)[:2] == ["self", "model_id_and_revision"]
    assert names(utils.GenerationState.get_manager) == ["self", "model_id", "use_cb"]
    manager = utils.BaseGenerateManager
    assert manager.__abstractmethods__ == {"generate_streaming", "generate_non_streaming", "stop"}
    shared = ["self", "model", "processor", "inputs", "gen_config", "request_id"]
    assert names(manager.generate_non_streaming) == shared
    assert names(manager.generate_streaming) == [*shared, "response_parser"]
    assert utils._StreamError("reason").msg == "reason"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2, with templates for chat and for its answers."""
    torch.manual_seed(0)
    # with room for the special tokens that transformers gives to every tokenizer of a Qwen2
    sizes = {"vocab_size": tiny.VOCABULARY + 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **more, **none)).eval()
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tiny.saved(model, tokenizer, tmp_path_factory.mktemp("models") / "thinker")


@pytest.fixture(scope="module")
def client(thinker: Path) -> Iterator[Any]:
    """The application without a socket."""
    from starlette.testclient import TestClient

    from channelwise.serving.app import Paths
    from channelwise.serving.generation import Generator

    served = open_served(str(thinker))
    assert not served.plain_chat
    generator = Generator(served.model, lambda finished: None)
    with TestClient(Paths(served, generator, lambda line: None).app()) as opened:
        yield opened
    generator.close()


def asked(client: Any, **fields: Any) -> dict[str, Any]:
    # without <|end|>, which no model goes on after
    sampled = {"temperature": 1, "seed": 5, "max_tokens": 60, "logit_bias": {"0": -100}}
    body = {"messages": [{"role": "user", "content": "Hello"}], **sampled, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        return {**answer.json()["choices"][0]["message"], **answer.json()["usage"]}
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    parts: dict[str, Any] = {"content": "", "reasoning_content": ""}
    for chunk in chunks:
        for name, text in chunk["choices"][0]["delta"].items():
            parts[name] = parts.get(name, "") + text
    return {**parts, **chunks[-1]["usage"]}


def test_thoughts_are_told_from_the_answer_streamed_or_whole(client: Any) -> None:
    whole, streamed = asked(client), asked(client, stream=True)
    assert whole["reasoning_content"] and whole["content"]
    assert streamed == whole


def test_a_stop_holds_for_answers_that_are_taken_apart(client: Any) -> None:
    content = asked(client)["content"]
    stop = content[len(content) // 2 :][:3]
    whole, streamed = asked(client, stop=stop), asked(client, stop=stop, stream=True)
    assert stop in content and stop not in whole["content"]
    assert (streamed["content"], streamed["reasoning_content"]) == (whole["content"], whole["reasoning_content"])


def test_the_models_own_template_is_used(client: Any, thinker: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(thinker)
    assert asked(client)["prompt_tokens"] == len(tokenizer("<user>Hello<assistant><think>")["input_ids"])


def test_an_error_while_generating_is_told_and_the_next_request_answered(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"prompt": "Hello", "max_tokens": 4}
    with monkeypatch.context() as spoilt:
        spoilt.setattr(transformers.Qwen2ForCausalLM, "generate", _broken)
        whole = client.post("/v1/completions", json=body)
        streamed = client.post("/v1/completions", json={**body, "stream": True})
    assert whole.status_code == 500
    assert whole.json()["error"]["message"] == 'generation failed: ValueError: a "quoted" reason'
    assert json.loads(streamed.text.split("\n\n")[0].removeprefix("data: ")) == whole.json()
    assert client.post("/v1/completions", json=body).status_code == 200


def _broken(*arguments: Any, **more: Any) -> None:
    raise ValueError('a "quoted"\nreason')
