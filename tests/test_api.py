"""The public API, on tiny models."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import channelwise
from channelwise import api
from channelwise.errors import InputError
from channelwise.model.texts import Texts
from channelwise.runtime.linear import QuantizedLinear
from tests.cli import tiny

TEXTS = tiny.sentences(120)


@pytest.fixture
def tokenizer() -> Any:
    return tiny.byte_tokenizer()


@pytest.fixture
def model() -> Any:
    return tiny.llama()


def test_public_names_are_there() -> None:
    assert set(channelwise.__all__) <= set(dir(channelwise))
    for name in channelwise.__all__:
        assert getattr(channelwise, name).__module__.startswith("channelwise.")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = channelwise.nonsense


def test_a_loaded_model_is_quantized_in_place(model: Any, tokenizer: Any) -> None:
    seen = []
    result = api.quantize(
        model,
        recipe="outliertune-w6a6",
        data=TEXTS,
        tokenizer=tokenizer,
        samples=8,
        progress=lambda label, done, total: seen.append((done, total)),
    )
    assert result.model is model and result.output is None
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 14
    assert len(result.record.sites) == 8
    assert result.after.model_bytes < result.before.model_bytes
    assert seen[-1] == (2, 2)


def test_what_is_written_loads_bit_identically(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    result = api.quantize(model, recipe="rtn-w6a6", data=TEXTS, tokenizer=tokenizer, samples=8, output=tmp_path / "out")
    loaded, own = api.load(tmp_path / "out")
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([own("the cat sees the dog.")["input_ids"]])
    with torch.no_grad():
        expected = result.model(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
        assert torch.equal(auto(ids).logits, expected)


def test_token_ids_need_no_tokenizer(model: Any) -> None:
    ids = torch.randint(tiny.VOCABULARY, (8, 16))
    assert api.quantize(model, recipe="rtn-w8a8", data=ids).record.sites[0].tokens == 8 * 16


def test_the_seed_decides(tokenizer: Any) -> None:
    def scales(seed: int) -> torch.Tensor:
        result = api.quantize(
            tiny.llama(), recipe="outliertune-w8a8", data=TEXTS, tokenizer=tokenizer, samples=2, length=16, seed=seed
        )
        return result.model.model.layers[0].self_attn.q_proj.input_scale

    assert torch.equal(scales(0), scales(0))
    assert not torch.equal(scales(0), scales(1))


def test_a_recipe_as_data_and_as_an_object(tokenizer: Any) -> None:
    recipe = channelwise.Recipe.model_validate
    data = {
        "name": "mine",
        "summary": "eight-bit weights",
        "weights": {"bits": 8},
        "stream": {"inputs": None},
        "inner": {"inputs": None},
    }
    options: dict[str, Any] = {"data": TEXTS, "tokenizer": tokenizer, "samples": 2, "length": 16}
    first = api.quantize(tiny.llama(), recipe=data, **options)
    second = api.quantize(tiny.llama(), recipe=recipe(data), **options)
    assert first.recipe == second.recipe
    assert first.recipe.name == "mine"


def test_experts_are_quantized_too(tokenizer: Any) -> None:
    config = transformers.MixtralConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        max_position_embeddings=64,
    )
    result = api.quantize(
        transformers.MixtralForCausalLM(config).eval(), recipe="rtn-w8a8", data=TEXTS, tokenizer=tokenizer, samples=4
    )
    names = [name for name, module in result.model.named_modules() if isinstance(module, QuantizedLinear)]
    assert sum("expert" in name for name in names) == 9


def test_compare_leaves_the_model_alone(model: Any, tokenizer: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    found = api.compare(
        model,
        recipes=["rtn-w8a8", "rtn-w4a4"],
        data=TEXTS,
        perplexity=TEXTS,
        tokenizer=tokenizer,
        samples=4,
        perplexity_length=32,
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found["fp"]["length"] == 32 and found["fp"]["perplexity_ratio"] == 1.0
    assert found["recipes"]["rtn-w4a4"]["model_bytes"] < found["recipes"]["rtn-w8a8"]["model_bytes"]


def test_compare_skips_what_does_not_fit_only_if_told_to(model: Any, tokenizer: Any) -> None:
    settings: Any = {"data": TEXTS, "perplexity": TEXTS, "tokenizer": tokenizer, "samples": 2}
    with pytest.raises(InputError, match="groups of 128 do not fit"):
        api.compare(model, recipes=["rtn-w8a8", "rtn-w4g128"], **settings)
    found = api.compare(model, recipes=["rtn-w8a8", "rtn-w4g128"], skip_unfit=True, **settings)
    assert list(found["recipes"]) == ["rtn-w8a8"]
    assert "groups of 128 do not fit" in found["skipped"]["rtn-w4g128"]
    with pytest.raises(InputError, match="groups of 128 do not fit"):
        api.compare(model, recipes=["rtn-w4g128"], skip_unfit=True, **settings)


def test_compare_by_embeddings() -> None:
    found = api.compare(
        tiny.bert(),
        recipes=["rtn-w8a8"],
        data=TEXTS,
        embeddings=TEXTS[:10],
        tokenizer=tiny.word_tokenizer(),
        samples=8,
    )
    assert found["fp"]["cosine_min"] == pytest.approx(1.0)
    assert found["fp"]["perplexity"] is None
    assert 0.9 < found["recipes"]["rtn-w8a8"]["cosine_mean"] < 1.0


def test_two_recipes_of_one_name_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(channelwise.InputError, match="same name"):
        api.compare(model, recipes=["rtn-w8a8"] * 2, data=TEXTS, perplexity=TEXTS, tokenizer=tokenizer)


def test_an_image_model_takes_pixel_values() -> None:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    result = api.quantize(transformers.ViTModel(config).eval(), recipe="rtn-w8a8", data=torch.rand(4, 3, 8, 8))
    assert result.record.sites[0].tokens == 4 * 5


def test_a_loaded_image_model_takes_its_processor(tmp_path: Path) -> None:
    folder, model, processor = tiny.image_folder(tmp_path, ["circle", "star"] * 3), tiny.vit(), tiny.image_processor()
    original = copy.deepcopy(model)
    with pytest.raises(channelwise.InputError, match=r"preprocessor_config.json"):
        api.quantize(model, recipe="rtn-w8a8", data=folder)
    result = api.quantize(model, recipe="rtn-w8a8", data=folder, processor=processor)
    assert result.record.sites[0].tokens == 6 * 17
    found = api.evaluate(result.model, images=folder, against=original, processor=processor)
    assert found["items"] == 6 and found["agreement"] > 0.5


def test_compare_by_classification() -> None:
    labels = tuple("cat" if "cat" in text else "0" for text in TEXTS)
    found = api.compare(
        tiny.bert_classifier(),
        recipes=["rtn-w8a8", "rtn-w4a4"],
        data=TEXTS,
        classification=Texts("texts", tuple(TEXTS), labels=labels),
        tokenizer=tiny.word_tokenizer(),
        samples=8,
    )
    assert found["fp"]["items"] == 120 and found["fp"]["agreement"] == 1.0
    agreements = [found["recipes"][name]["agreement"] for name in ("rtn-w8a8", "rtn-w4a4")]
    assert 1.0 >= agreements[0] > agreements[1]
    assert {found["recipes"][name]["accuracy_fp"] for name in found["recipes"]} == {found["fp"]["accuracy"]}
