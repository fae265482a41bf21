"""Attention with quantized inputs."""

import pytest
import torch
from transformers import BertConfig, BertModel, BloomConfig, BloomModel, LlamaConfig, LlamaForCausalLM

from channelwise.errors import InputError
from channelwise.model.attention import quantized_attention, use_quantized_attention


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def relative_change(model: torch.nn.Module, bits: int, **inputs: torch.Tensor) -> float:
    before = model(**inputs)[0]
    use_quantized_attention(model, bits)
    after = model(**inputs)[0]
    return float((after - before).norm() / before.norm())


def test_error_falls_with_every_bit() -> None:
    ids = torch.arange(40).view(2, 20)
    errors = [relative_change(tiny_llama(), bits, input_ids=ids) for bits in (3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 0.01


def test_later_tokens_and_padding_stay_invisible() -> None:
    model = tiny_llama()
    use_quantized_attention(model, 8)
    ids = torch.arange(20).view(1, 20)
    changed = ids.clone()
    changed[0, -1] = 63
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :-1], model(changed).logits[:, :-1])
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        other = ids.clone()
        other[0, :5] = 7
        first = model(ids, attention_mask=mask).logits[:, 5:]
        torch.testing.assert_close(first, model(other, attention_mask=mask).logits[:, 5:])


def test_serves_encoders_too() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    error = relative_change(BertModel(config).eval(), 8, input_ids=torch.arange(20).view(1, 20))
    assert 0 < error < 0.02


def test_matches_plain_attention_on_values_that_lie_on_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-127, 128, (1, 2, 6, 8), generator=generator).float() for _ in range(3))
    for x in (q, k, v):
        x[..., 0] = 127
    # One-hot attention: its probabilities lie on the grid as well.
    mask = torch.full((6, 6), -torch.inf)
    mask.fill_diagonal_(0)
    output, probabilities = quantized_attention(torch.nn.Module(), q, k, v, mask, bits=8)
    torch.testing.assert_close(output.transpose(1, 2), v)
    assert torch.equal(probabilities[0, 0], torch.eye(6))


def test_a_model_with_its_own_attention_is_refused() -> None:
    model = BloomModel(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(InputError, match="BloomModel has its own attention"):
        use_quantized_attention(model, 8)
