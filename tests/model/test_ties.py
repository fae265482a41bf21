"""Tied weights: stored once, tied again where they were, and left alone where one of them was quantized."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import channelwise
from channelwise.model.loading import load_model
from channelwise.model.ties import forget_ties
from channelwise.recipe import load_recipe
from tests.cli import tiny

RECIPE = {
    "head": ("embedding=null",),
    "embedding": ("head=null",),
    "both": (),
    "neither": ("head=null", "embedding=null"),
}


def parameters(model: Any) -> dict[str, Any]:
    return {name: (id(value), value.clone()) for name, value in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("quantized", sorted(RECIPE))
def test_tying_again_changes_nothing(quantized: str, tmp_path: Path) -> None:
    source = tiny.llama(tie_word_embeddings=True)
    recipe = load_recipe("llm-fp4-w4a4", RECIPE[quantized])
    options: dict[str, Any] = {"tokenizer": tiny.byte_tokenizer(), "samples": 2, "length": 16}
    result = channelwise.quantize(source, recipe=recipe, data=tiny.sentences(20), output=tmp_path / "out", **options)
    loaded, _ = channelwise.load(tmp_path / "out")
    for model in (result.model, loaded):
        before, ids = parameters(model), torch.arange(8)[None]
        expected = model(ids).logits
        model.tie_weights()
        after = parameters(model)
        assert after.keys() == before.keys()
        assert all(after[name][0] == before[name][0] for name in after)
        assert torch.equal(model(ids).logits, expected)
        if quantized == "neither":
            assert model.lm_head.weight is model.model.embed_tokens.weight


def test_other_models_of_the_class_keep_their_ties() -> None:
    channelwise.quantize(
        tiny.llama(tie_word_embeddings=True),
        recipe="llm-fp4-w4a4",
        data=tiny.sentences(20),
        tokenizer=tiny.byte_tokenizer(),
        samples=2,
        length=16,
    )
    other = tiny.llama(tie_word_embeddings=True)
    assert other.lm_head.weight is other.model.embed_tokens.weight


HEAD = "head={method: {name: none}, inputs: {bits: 8, granularity: tensor}}"
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nothing": ("rtn-w8a8", ()),
    "head": ("rtn-w8a8", (HEAD,)),
    "embedding": ("llm-fp4-w4a4", ("head=null", "search_tokens=64")),
}
KEYS = {"head": "lm_head.weight", "embedding": "model.embed_tokens.weight"}
"""The parameters, which a quantized layer does not have."""


def written(source: Any, kind: str, output: Path) -> Path:
    name, settings = KINDS[kind]
    options: dict[str, Any] = {"data": tiny.sentences(20), "samples": 2, "length": 16, "overwrite": True}
    channelwise.quantize(
        source, recipe=load_recipe(name, settings), output=output, tokenizer=tiny.byte_tokenizer(), **options
    )
    return output


def saved(folder: Path, *, tied: bool) -> Path:
    return tiny.saved(tiny.llama(tie_word_embeddings=tied), tiny.byte_tokenizer(), folder)


def with_head(folder: Path, head: torch.Tensor) -> None:
    """Adds a head of its own to a file that has none, because the config ties it."""
    tensors = load_file(folder / "model.safetensors")
    assert KEYS["head"] not in tensors
    save_file({**tensors, KEYS["head"]: head}, folder / "model.safetensors", metadata={"format": "pt"})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(8)[None]).logits
    return found


def loaded(folder: Path) -> list[Any]:
    """By this package, and by transformers with it."""
    return [channelwise.load(folder)[0], transformers.AutoModelForCausalLM.from_pretrained(folder)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_gives_the_logits_of_the_model_in_memory(kind: str, tied: bool, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", tied=tied)
    output = written(source, kind, tmp_path / "output")
    model, _ = load_model(source)
    written(model, kind, tmp_path / "again")
    for each in loaded(output):
        assert torch.equal(logits(each), logits(model))
    stored = set(load_file(output / "model.safetensors"))
    left = {key for name, key in KEYS.items() if name != kind}
    assert stored & set(KEYS.values()) == (left if not tied or kind != "nothing" else {KEYS["embedding"]})


def test_a_tied_weight_that_the_file_holds_twice_is_stored_once(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", tied=True)
    with_head(source, load_file(source / "model.safetensors")[KEYS["embedding"]].clone())
    output = written(source, "nothing", tmp_path / "output")
    assert KEYS["head"] not in load_file(output / "model.safetensors")
    for model in loaded(output):
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_other_values_is_kept_though_the_config_ties_it(kind: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", tied=True)
    head = load_file(source / "model.safetensors")[KEYS["embedding"]].flip(0).contiguous()
    with_head(source, head)
    before = transformers.AutoModelForCausalLM.from_pretrained(source)
    assert torch.equal(before.lm_head.weight, head)
    output = written(source, kind, tmp_path / "output")
    stored = load_file(output / "model.safetensors")
    assert stored.keys() & set(KEYS.values()) == {key for name, key in KEYS.items() if name != kind}
    if kind != "head":
        assert torch.equal(stored[KEYS["head"]], head)
    for model in loaded(output):
        expected = logits(model)
        model.tie_weights()
        assert torch.equal(logits(model), expected)


def test_a_config_that_ties_weights_of_other_values_is_put_right(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", tied=True)
    with_head(source, torch.ones_like(load_file(source / "model.safetensors")[KEYS["embedding"]]))
    model, _ = load_model(source)
    assert model.config.tie_word_embeddings is True
    forget_ties(model)
    assert model.config.tie_word_embeddings is False
    assert type(model)._tied_weights_keys


def test_a_config_that_ties_one_weight_is_left_alone() -> None:
    model = tiny.llama(tie_word_embeddings=True)
    forget_ties(model)
    assert model.config.tie_word_embeddings is True
    assert model.all_tied_weights_keys
