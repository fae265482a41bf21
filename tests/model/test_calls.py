"""The blocks' calls are those of a real forward pass, and hold little memory."""

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel

from channelwise.errors import InputError
from channelwise.model.blocks import BlockList, find_blocks
from channelwise.model.calls import BlockCall, capture_calls
from tests.model.tiny_models import NAMES, tiny_batch, tiny_model


def tensors_of(call: BlockCall) -> list[torch.Tensor]:
    values = [*call.args, *call.kwargs.values()]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [value for value in flat if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_running_the_captured_calls_gives_what_the_model_computes(name: str) -> None:
    model = tiny_model(name, torch.float32)
    model.config._attn_implementation = "eager"
    blocks = find_blocks(model)
    batches = [tiny_batch(model, seed=0), tiny_batch(model, seed=1)]
    for batch, calls in zip(batches, capture_calls(model, blocks, batches), strict=True):
        real: list[torch.Tensor] = []
        last = blocks.modules(model)[-1]
        handle = last.register_forward_hook(lambda module, args, output, real=real: real.append(output))
        with torch.no_grad():
            model(**batch)
        handle.remove()
        hidden = calls[0].hidden()
        for block, call in zip(blocks.modules(model), calls, strict=True):
            hidden = call.run(block, hidden)
        expected = real[0][0] if isinstance(real[0], tuple) else real[0]
        assert torch.equal(hidden, expected)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_blocks_calls_hold_a_hidden_state_and_equal_tensors_are_shared(name: str) -> None:
    model = tiny_model(name, torch.float32)
    batches = [tiny_batch(model, seed=seed) for seed in range(3)]
    calls = capture_calls(model, find_blocks(model), batches)
    first_hidden = {calls[batch][0].hidden().data_ptr() for batch in range(3)}
    assert len(first_hidden) == 3
    for batch_calls in calls:
        with pytest.raises(ValueError, match="does not hold"):
            batch_calls[1].hidden()
    rest = [{value.data_ptr() for value in tensors_of(calls[batch][1])} for batch in range(3)]
    assert rest[0] == rest[1] == rest[2]
    assert not first_hidden & rest[0]


def test_masks_of_padded_batches_are_kept_apart() -> None:
    model = tiny_model("llama", torch.float32)
    batches = []
    for length in (12, 7):
        mask = torch.ones(2, 12, dtype=torch.int64)
        mask[1, length:] = 0
        batches.append({**tiny_batch(model), "attention_mask": mask})
    padded, full = (calls[1] for calls in reversed(capture_calls(model, find_blocks(model), batches)))
    assert padded.kwargs["attention_mask"] is not None
    assert full.kwargs["attention_mask"] is None or not torch.equal(
        full.kwargs["attention_mask"], padded.kwargs["attention_mask"]
    )


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("bert", torch.float32)
    capture_calls(model, find_blocks(model), [tiny_batch(model)])
    assert all("forward" not in module.__dict__ for module in model.modules())


class Handing(nn.Module):
    """A block that hands a tensor to the next one, as T5's do with position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        bias = hidden.mean(dim=-1, keepdim=True) if bias is None else bias
        return self.linear(hidden) + bias, bias


class Stack(nn.Module):
    def __init__(self, repeats: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Handing(), Handing()])
        self.repeats = repeats

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None
        for _ in range(self.repeats):
            for layer in self.layers:
                x, bias = layer(x, bias)
        return x


def test_tensors_that_blocks_hand_to_each_other_are_the_real_ones() -> None:
    model = Stack()
    batches = [{"x": torch.randn(2, tokens, 4)} for tokens in (3, 5)]
    for batch, calls in zip(batches, capture_calls(model, find_blocks(model), batches), strict=True):
        torch.testing.assert_close(calls[1].args[1], batch["x"].mean(dim=-1, keepdim=True))
        hidden = calls[1].run(model.layers[1], calls[0].run(model.layers[0]))
        torch.testing.assert_close(hidden, model(**batch))


def test_blocks_called_twice_or_never_are_refused() -> None:
    batch = {"x": torch.randn(1, 3, 4)}
    twice = Stack()
    twice.layers = nn.ModuleList([twice.layers[0]])
    twice.layers.append(nn.Identity())
    repeated = Stack(repeats=2)
    unused = BlockList("layers", ("layers.0", "layers.1", "extra"))
    repeated.extra = Handing()
    with pytest.raises(InputError, match="more than once"):
        capture_calls(repeated, unused, [batch])
    once = Stack()
    once.extra = Handing()
    with pytest.raises(InputError, match="block 2 was not called"):
        capture_calls(once, unused, [batch])


def test_a_block_that_runs_once_per_layer_is_refused() -> None:
    """ALBERT's layers are one block: quantizing it by its first call alone would be wrong in silence."""
    config = AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    model = AlbertModel(config).eval()
    ids = torch.arange(16).view(2, 8)
    with pytest.raises(InputError, match="called more than once"):
        capture_calls(model, find_blocks(model), [{"input_ids": ids}])
