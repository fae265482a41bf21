"""Tied weights after one of them was quantized: nobody ties them again."""

from pathlib import Path
from typing import Any

import pytest
import torch

import channelwise
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
