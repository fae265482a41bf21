"""What is behind a model's blocks, run on hidden states that are already there."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from channelwise.engine.tail import Tail, head_name, head_site
from channelwise.model.blocks import BlockList, find_blocks, hidden_of
from channelwise.model.calls import capture
from tests.checkpoint import tiny
from tests.model.tiny_models import tiny_batch, tiny_model

CAUSAL = ("llama", "gemma3", "opt", "opt_350m", "gpt2", "falcon", "cohere", "qwen3_moe")


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes, decoder_start_token_id=0)).eval()


def bert_masked() -> nn.Module:
    torch.manual_seed(0)
    return tiny.bert_masked().eval()


def build(name: str) -> nn.Module:
    others = {"t5": t5, "bert_masked": bert_masked}
    return others[name]() if name in others else tiny_model(name, torch.float32)


def batch_of(model: nn.Module, seed: int, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    batch = tiny_batch(model, seed, rows, tokens)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"].flip(1)
    return batch


def tail_of(model: nn.Module, blocks: BlockList, batch: dict[str, torch.Tensor]) -> Tail:
    return Tail(model, blocks, capture(model, blocks, [batch]).templates)


@torch.no_grad()
def last_hidden(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last block puts out, and the model's logits."""
    found: list[Any] = []
    last = find_blocks(model).modules(model)[-1]
    handle = last.register_forward_hook(lambda _, __, output: found.append(output))
    logits = model(**batch).logits
    handle.remove()
    [output] = found
    return hidden_of(output).clone(), logits


@pytest.mark.parametrize("name", [*CAUSAL, "bert_masked", "t5", "vit"])
def test_behind_the_last_blocks_hidden_state_are_the_models_own_logits(name: str) -> None:
    """Bit by bit, on a batch of another size than the one that the tail was learnt from."""
    model = build(name)
    tail = tail_of(model, find_blocks(model), batch_of(model, 1, 1, 5))
    for seed, rows, tokens in ((2, 3, 12), (3, 2, 7)):
        batch = batch_of(model, seed, rows, tokens)
        hidden, logits = last_hidden(model, batch)
        assert torch.equal(tail.run(batch, hidden).logits, logits)


@pytest.mark.parametrize("name", ["llama", "bert_masked", "t5"])
def test_the_blocks_are_not_computed_and_come_back(name: str) -> None:
    model = build(name)
    blocks = find_blocks(model)
    batch = batch_of(model, 2, 2, 6)
    hidden, logits = last_hidden(model, batch)
    tail = tail_of(model, blocks, batch_of(model, 1, 1, 4))
    calls: list[nn.Module] = []
    inner = [module for block in blocks.modules(model) for module in block.modules() if module is not block]
    handles = [module.register_forward_hook(lambda module, _, __: calls.append(module)) for module in inner]
    tail.run(batch, hidden)
    assert not calls
    for handle in handles:
        handle.remove()
    assert torch.equal(last_hidden(model, batch)[1], logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_that_fails_leaves_the_blocks_as_they_were() -> None:
    model = build("llama")
    batch = batch_of(model, 0, 2, 6)
    hidden, logits = last_hidden(model, batch)
    tail = tail_of(model, find_blocks(model), batch)
    with pytest.raises(RuntimeError):
        tail.run(batch, hidden[..., :-1])
    assert torch.equal(last_hidden(model, batch)[1], logits)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *((name, "lm_head") for name in CAUSAL),
        ("bert_masked", "cls.predictions.decoder"),
        ("t5", "lm_head"),
        ("bert", None),
        ("distilbert", None),
        ("vit", None),
    ],
)
def test_the_head_is_the_layer_that_gives_logits_over_the_vocabulary(name: str, head: str | None) -> None:
    assert head_name(build(name)) == head


def test_a_head_that_is_quantized_already_is_none_to_quantize() -> None:
    assert head_name(tiny.quantize(tiny.llama(), keep=())) is None


def test_the_heads_site_has_its_channels() -> None:
    model = build("opt_350m")
    site = head_site(model, "lm_head")
    assert (site.linears, site.channels, site.kind) == (("lm_head",), 16, "head")
