"""A loaded checkpoint in transformers: static cache, padded batches, compiled code."""

from typing import Any

import pytest
import torch
import transformers

from tests.checkpoint import tiny
from tests.checkpoint.tiny import Save

PROMPTS = [[3, 5, 7, 9, 11], [4, 6]]
PAD = 0


@pytest.fixture(params=["token", "static", "weight only"])
def loaded(request: pytest.FixtureRequest, save: Save) -> Any:
    kind, model = request.param, tiny.llama()
    quantized = tiny.weight_only(model) if kind == "weight only" else tiny.quantize(model, kind=kind)
    return transformers.AutoModelForCausalLM.from_pretrained(save(quantized)).eval()


def continued(model: Any, ids: torch.Tensor, mask: torch.Tensor, **settings: Any) -> list[list[int]]:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None, **settings}
    return model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :].tolist()


def test_a_static_cache_gives_the_same_tokens(loaded: Any) -> None:
    ids = torch.tensor(PROMPTS[:1])
    mask = torch.ones_like(ids)
    assert continued(loaded, ids, mask, cache_implementation="static") == continued(loaded, ids, mask)


def test_a_padded_batch_gives_each_prompt_its_own_tokens(loaded: Any) -> None:
    alone = [continued(loaded, torch.tensor([p]), torch.ones(1, len(p), dtype=torch.long))[0] for p in PROMPTS]
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    assert continued(loaded, ids, mask) == alone


@torch.no_grad()
def test_the_compiled_model_is_one_graph_and_gives_the_same_logits(loaded: Any) -> None:
    torch._dynamo.reset()
    ids = torch.tensor(PROMPTS[:1])
    compiled = torch.compile(loaded, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, loaded(ids, use_cache=False).logits)
