"""The importance of outputs, against squared gradients computed one by one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from channelwise.engine import fisher
from channelwise.engine.fisher import output_importance
from channelwise.engine.sampling import TokenSampler
from channelwise.methods.site import Importance
from channelwise.model.blocks import find_blocks
from channelwise.model.experts import unfuse_experts
from channelwise.model.linears import linear_names
from tests.model.tiny_models import tiny_batch, tiny_model

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
Batch = dict[str, torch.Tensor]
Weighted = list[tuple[torch.Tensor | float, torch.Tensor]]

EVERY_TOKEN = TokenSampler()

DRAWS = 1000
"""Enough draws for 25 %: the mean of so many squares, of a kurtosis up to 6, has a standard deviation of 7 %."""


def bert(kind: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(tf, kind)(tf.BertConfig(**{**SIZES, **more})).eval()
    for name, parameter in model.named_parameters():
        # Initialised at 0.02, everything would be the same at all tokens.
        parameter.data.normal_(float("LayerNorm.weight" in name), 0.3)
    return model


def layers(model: nn.Module) -> list[str]:
    return [f"{block}.{n}" for block in find_blocks(model).names for n in linear_names(model.get_submodule(block))]


def importance(
    model: nn.Module,
    batches: list[Batch],
    sampler: TokenSampler = EVERY_TOKEN,
    seed: int = 0,
) -> dict[str, Importance]:
    first = model.get_submodule(find_blocks(model).names[0])
    return output_importance(model, first, layers(model), batches, sampler, seed)


def squared_gradients(
    model: nn.Module, batch: Batch, losses: Callable[[Any], Weighted], names: list[str]
) -> dict[str, torch.Tensor]:
    """Σ weight · (∂ loss / ∂ output)² of the layers, by adding a zero to each output and asking for its gradient."""
    zeros: dict[str, torch.Tensor] = {}

    def add(name: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            zeros[name] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[name]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(add(name)) for name in names]
    found = {}
    with torch.enable_grad():
        weighted = losses(model(**batch))
        for weight, loss in weighted:
            gradients = torch.autograd.grad(loss, [zeros[name] for name in names], retain_graph=True, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                square = torch.zeros_like(zeros[name]) if gradient is None else gradient.square()
                found[name] = found.get(name, 0) + weight * square
    for handle in handles:
        handle.remove()
    return {name: square.detach() for name, square in found.items()}


def expectation_over_classes(result: Any) -> Weighted:
    """(p_c, log p_c) of the one example's classes."""
    [likelihoods] = torch.log_softmax(result.logits, dim=-1)
    return [(value.detach().exp(), value) for value in likelihoods]


def expectation_over_tokens(result: Any) -> Weighted:
    likelihoods = torch.log_softmax(result.logits, dim=-1).flatten()
    return [(value.detach().exp(), value) for value in likelihoods]


def every_entry(result: Any) -> Weighted:
    """(1, h) of every entry: the Fisher information of means of normal distributions with variance 1."""
    return [(1.0, value) for value in result.last_hidden_state.flatten()]


def one_by_one(batch: Batch) -> list[Batch]:
    [size] = {len(value) for value in batch.values()}
    return [{key: value[index : index + 1] for key, value in batch.items()} for index in range(size)]


def exact_importance(
    model: nn.Module, batches: list[Batch], losses: Callable[[Any], Weighted], sampler: TokenSampler, names: list[str]
) -> dict[str, Importance]:
    """In float64, example by example."""
    exact = copy.deepcopy(model).double()
    tokens: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    outputs: dict[str, torch.Tensor] = {}
    for index, batch in enumerate(batches):
        double = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        found = [squared_gradients(exact, example, losses, names) for example in one_by_one(double)]
        for name in names:
            square = torch.cat([example[name].flatten(0, -2) for example in found])
            tokens[name].append(square[sampler.rows(index, len(square))].sum(dim=1))
            outputs[name] = outputs.get(name, 0) + square.sum(dim=0)
    joined = {name: torch.cat(parts) for name, parts in tokens.items()}
    return {n: Importance(joined[n] / joined[n].mean(), outputs[n] / outputs[n].mean()) for n in names}


def assert_same(found: dict[str, Importance], exact: dict[str, Importance], rtol: float, atol: float) -> None:
    assert set(found) == set(exact)
    for name, expected in exact.items():
        torch.testing.assert_close(found[name].tokens.double(), expected.tokens, rtol=rtol, atol=atol)
        torch.testing.assert_close(found[name].outputs.double(), expected.outputs, rtol=rtol, atol=atol)


def classifier_and_batches(name: str) -> tuple[nn.Module, list[Batch]]:
    models = {
        "vit": lambda: tiny_model("vit", torch.float32),
        "bert": lambda: bert("BertForSequenceClassification", num_labels=4),
    }
    model = models[name]()
    return model, [tiny_batch(model, 0, 3, 7), tiny_batch(model, 1, 2, 5)]


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_of_a_classifier_it_is_the_expectation_over_its_predictions(name: str, share: float) -> None:
    """Float32 against float64: gradients of about a thousand operations each, so 1e-4 of them."""
    model, batches = classifier_and_batches(name)
    sampler = TokenSampler(share, 3)
    exact = exact_importance(model, batches, expectation_over_classes, sampler, layers(model))
    assert_same(importance(model, batches, sampler), exact, rtol=1e-4, atol=1e-5)


def test_of_a_masked_language_model_draws_come_near_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "DRAWS", DRAWS)
    model = bert("BertForMaskedLM", vocab_size=20)
    batches = [{"input_ids": torch.tensor([[3, 9, 17, 4]])}]
    exact = exact_importance(model, batches, expectation_over_tokens, EVERY_TOKEN, layers(model))
    assert_same(importance(model, batches), exact, rtol=0.25, atol=0.01)


def test_of_hidden_states_draws_come_near_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "DRAWS", DRAWS)
    model = bert("BertModel")
    batches = [{"input_ids": torch.tensor([[3, 9, 17, 4]])}]
    exact = exact_importance(model, batches, every_entry, EVERY_TOKEN, layers(model))
    assert_same(importance(model, batches), exact, rtol=0.25, atol=0.01)


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_it_is_the_same_for_one_seed_has_mean_one_and_is_not_negative(kind: str) -> None:
    model = bert(kind)
    batches = [tiny_batch(model, 0), tiny_batch(model, 1, 3, 5)]
    found, again = importance(model, batches, seed=5), importance(model, batches, seed=5)
    assert set(found) == set(layers(model))
    for name, part in found.items():
        assert torch.equal(part.tokens, again[name].tokens) and torch.equal(part.outputs, again[name].outputs)
        assert part.tokens.shape == (2 * 12 + 3 * 5,)
        assert part.outputs.shape == (model.get_submodule(name).out_features,)
        for marginal in (part.tokens, part.outputs):
            assert float(marginal.mean()) == pytest.approx(1.0, abs=1e-5)
            assert bool((marginal >= 0).all())


def test_at_every_output_of_an_encoder_errors_matter() -> None:
    found = importance(bert("BertModel"), [{"input_ids": torch.arange(10).view(1, 10)}])
    assert all(bool((part.tokens > 0).all()) for part in found.values())


@pytest.mark.parametrize(("kind", "drawn"), [("BertModel", True), ("BertForSequenceClassification", False)])
def test_only_draws_depend_on_the_seed(kind: str, drawn: bool) -> None:
    model = bert(kind)
    batches = [tiny_batch(model)]
    one, other = importance(model, batches, seed=1), importance(model, batches, seed=2)
    name = layers(model)[0]
    assert torch.equal(one[name].outputs, other[name].outputs) is not drawn


def test_a_layer_whose_output_is_multiplied_by_zero_is_missing() -> None:
    model = tiny_model("llama", torch.float32)
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    found = importance(model, [tiny_batch(model)])
    silent = {f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj")}
    assert set(found) == set(layers(model)) - silent


def test_an_expert_that_no_token_reached_is_missing_and_others_have_one_row_for_each_of_their_tokens() -> None:
    model = tiny_model("mixtral", torch.float32)
    unfuse_experts(model)
    reached: dict[str, int] = {}
    experts = [name for name in layers(model) if name.endswith("down_proj")]
    handles = [
        model.get_submodule(n).register_forward_hook(lambda _, args, out, n=n: reached.__setitem__(n, len(out)))
        for n in experts
    ]
    batch = {"input_ids": torch.tensor([[5, 6]])}
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    assert 0 < len(reached) < len(experts)
    found = importance(model, [batch])
    assert {name: len(part.tokens) for name, part in found.items() if name in experts} == reached


@pytest.mark.parametrize("kind", ["BertForQuestionAnswering", "BertForPreTraining", "BertForTokenClassification"])
def test_a_model_with_other_heads_has_an_importance_at_every_layer(kind: str) -> None:
    model = bert(kind)
    assert set(importance(model, [tiny_batch(model)])) == set(layers(model))


def test_a_model_that_answers_with_one_number_has_an_importance_at_every_layer() -> None:
    model = bert("BertForSequenceClassification", num_labels=1)
    assert set(importance(model, [tiny_batch(model)])) == set(layers(model))


def test_a_class_is_drawn_as_torch_draws_it() -> None:
    for seed in range(20):
        shares = torch.softmax(3 * torch.randn(30, 200, generator=torch.Generator().manual_seed(seed)), dim=-1)
        drawn, expected = (torch.Generator().manual_seed(seed) for _ in range(2))
        assert torch.equal(fisher._drawn(shares, drawn), torch.multinomial(shares, 1, generator=expected))
        assert torch.equal(drawn.get_state(), expected.get_state())


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_an_answer_that_is_not_finite_gives_none(kind: str) -> None:
    model = bert(kind)
    last = model.base_model.encoder.layer[1]
    last.output.LayerNorm.weight.data[0] = torch.nan
    assert importance(model, [tiny_batch(model)]) == {}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_the_model_stays_as_it_was(kind: str, trained: bool) -> None:
    model = bert(kind).requires_grad_(trained)
    batch = tiny_batch(model)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        exact = model(**batch)[0]
        found = importance(model, [batch])
        again = model(**batch)[0]
    assert torch.equal(again, exact)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {parameter.requires_grad for parameter in model.parameters()} == {trained}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    tensors = [tensor for part in found.values() for tensor in (part.tokens, part.outputs)]
    assert not any(tensor.requires_grad for tensor in [*tensors, *batch.values()])


def test_pixels_do_not_ask_for_gradients_afterwards() -> None:
    model = tiny_model("vit", torch.float32)
    batch = tiny_batch(model)
    importance(model, [batch])
    assert not batch["pixel_values"].requires_grad
