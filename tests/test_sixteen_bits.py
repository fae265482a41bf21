"""Models in 16 bits, on a processor without instructions for them: nothing large is computed in 16 bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from channelwise.engine.walk import quantize_model
from channelwise.evaluation.classification import classify
from channelwise.evaluation.embeddings import embed
from channelwise.evaluation.outliers import find_outliers
from channelwise.evaluation.perplexity import measure_perplexity
from channelwise.evaluation.profile import profile_model
from channelwise.recipe import load_recipe
from channelwise.runtime import widening
from tests.model.tiny_models import BERT, tiny_batch, tiny_model
from tests.runtime.test_widening import NARROW, Seen

Asked = Callable[[torch.nn.Module], Any]
IDS = torch.randint(64, (96,), generator=torch.Generator().manual_seed(0))


def classifier(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT)).eval().to(dtype)


def quantized(recipe: str, *settings: str) -> Asked:
    return lambda model: quantize_model(model, [tiny_batch(model)], load_recipe(recipe, settings).to_plan())


ASKED: dict[str, tuple[str, Asked]] = {
    "perplexity": ("llama", lambda model: measure_perplexity(model, IDS, 24)),
    "perplexity of Conv1D": ("gpt2", lambda model: measure_perplexity(model, IDS, 24)),
    "embeddings": ("bert", lambda model: embed(model, list(IDS.split(24)))),
    "classes": ("classifier", lambda model: classify(model, IDS.split(24))),
    "outliers": ("llama", lambda model: find_outliers(model, [tiny_batch(model)])),
    "profile": ("llama", lambda model: profile_model(model, [tiny_batch(model)])),
    "os-plus-w6a6": ("opt", quantized("os-plus-w6a6")),
    "gptq-ada-w3g128": ("opt", quantized("gptq-ada-w3g128", "weights.group_size=16")),
    "llm-fp4-w4a4": ("opt", quantized("llm-fp4-w4a4")),
}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_of_a_model_is_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, asked: str, dtype: torch.dtype
) -> None:
    name, ask = ASKED[asked]
    model = classifier(dtype) if name == "classifier" else tiny_model(name, dtype)
    with monkeypatch.context() as patched:
        patched.setattr(widening, "without_instructions", lambda: frozenset(NARROW))
        with Seen() as seen:
            ask(model)
    assert torch.float32 in seen.dtypes
    assert not seen.slow
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_perplexity_is_that_of_the_same_numbers_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widening, "without_instructions", lambda: frozenset(NARROW))
    model = tiny_model("llama", torch.bfloat16)
    found = measure_perplexity(model, IDS, 24).perplexity
    assert found == pytest.approx(measure_perplexity(model.float(), IDS, 24).perplexity, rel=0.02)
