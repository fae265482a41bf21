"""What is saved is what is loaded, bit for bit, by us and by transformers."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from channelwise.checkpoint import shards, writer
from channelwise.checkpoint.loader import is_checkpoint, load_checkpoint
from channelwise.model.attention import use_quantized_attention
from channelwise.runtime.linear import QuantizedLinear
from tests.checkpoint import tiny
from tests.checkpoint.tiny import Save


@pytest.mark.parametrize("name", sorted(tiny.MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_bit_identical(name: str, dtype: torch.dtype, save: Save) -> None:
    model = tiny.quantize(tiny.MODELS[name]().to(dtype), kind="static" if dtype == torch.bfloat16 else "token")
    expected = tiny.outputs(model)
    folder = save(model)
    loaded, tokenizer = load_checkpoint(folder)
    assert tokenizer is None
    assert type(loaded) is type(model)
    assert loaded.dtype == dtype
    assert not loaded.training
    assert torch.equal(tiny.outputs(loaded), expected)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    again = type(model).from_pretrained(folder, dtype="auto")
    assert torch.equal(tiny.outputs(again), expected)


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("llama", transformers.AutoModelForCausalLM),
        ("gpt2", transformers.AutoModelForCausalLM),
        ("bert", transformers.AutoModel),
        ("vit", transformers.AutoModelForImageClassification),
    ],
)
def test_auto_classes(name: str, auto: Any, save: Save) -> None:
    model = tiny.quantize(tiny.MODELS[name]())
    assert torch.equal(tiny.outputs(auto.from_pretrained(save(model))), tiny.outputs(model))


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bert_masked", "vit"])
def test_body_without_head(name: str, save: Save) -> None:
    model = tiny.quantize(tiny.MODELS[name]())
    body = transformers.AutoModel.from_pretrained(save(model))
    layers = [module for module in body.modules() if isinstance(module, QuantizedLinear)]
    assert layers
    expected = dict(model.base_model.named_modules())
    for layer_name, layer in body.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert torch.equal(layer.codes(), expected[layer_name].codes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_keep_their_dtype(dtype: torch.dtype, save: Save) -> None:
    model = tiny.quantize(tiny.llama())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(save(model), dtype=dtype)
    assert loaded.model.embed_tokens.weight.dtype == dtype
    before = model.get_submodule("model.layers.1.mlp.down_proj").state_dict()
    after = loaded.get_submodule("model.layers.1.mlp.down_proj").state_dict()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(after[key], tensor)


@pytest.mark.parametrize("name", ["tied_llama", "bert_masked", "opt"])
def test_quantized_head_of_tied_embeddings(name: str, save: Save) -> None:
    model = tiny.quantize(tiny.MODELS[name](), keep=())
    loaded, _ = load_checkpoint(save(model))
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))


def test_tied_embeddings_are_stored_once_and_stay_tied(save: Save) -> None:
    folder = save(tiny.quantize(tiny.tied_llama()))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    loaded, _ = load_checkpoint(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_size_on_disk(bits: int, save: Save) -> None:
    folder = save(tiny.quantize(tiny.llama(), bits=bits))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        packed = file.get_slice("model.layers.0.mlp.gate_proj.weight_packed")
        assert (packed.get_dtype(), packed.get_shape()) == ("U8", [32, 16 * bits // 8])


def test_several_shards(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "write_shards", partial(shards.write_shards, largest=4000))
    model = tiny.quantize(tiny.llama())
    folder = save(model)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(tiny.outputs(load_checkpoint(folder)[0]), tiny.outputs(model))


def test_save_pretrained_of_a_loaded_model_loads(save: Save, tmp_path: Path) -> None:
    model = tiny.quantize(tiny.vit())
    loaded, _ = load_checkpoint(save(model))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(tiny.outputs(load_checkpoint(tmp_path / "again")[0]), tiny.outputs(model))


def test_a_loaded_model_can_be_saved_again(save: Save) -> None:
    model = tiny.quantize(tiny.bert())
    loaded, _ = load_checkpoint(save(model))
    assert torch.equal(tiny.outputs(load_checkpoint(save(loaded, "again"))[0]), tiny.outputs(model))


def test_generates(save: Save) -> None:
    loaded, _ = load_checkpoint(save(tiny.quantize(tiny.llama())))
    tokens = loaded.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokens.shape == (1, 7)


def test_quantized_attention_comes_back(save: Save) -> None:
    model = tiny.quantize(tiny.llama())
    floating = tiny.outputs(model)
    use_quantized_attention(model, 4)
    folder = save(model, recipe={"name": "by-hand", "attention_bits": 4})
    expected = tiny.outputs(model)
    assert not torch.equal(expected, floating)
    assert torch.equal(tiny.outputs(load_checkpoint(folder)[0]), expected)


def test_config_is_grouped_by_scheme(save: Save) -> None:
    folder = save(tiny.quantize(tiny.llama()))
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "channelwise"
    assert config["recipe"] == {"name": "by-hand"}
    assert sum(len(group["modules"]) for group in config["linears"]) == 14
    assert len(config["linears"]) == 4
    assert is_checkpoint(folder)
    assert not is_checkpoint(folder.parent)
