"""What is not a whole checkpoint is refused in one line that names it; nothing is initialised at random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from channelwise.checkpoint.format import CheckpointFormat, from_config, to_config
from channelwise.checkpoint.loader import load_checkpoint
from channelwise.checkpoint.plugin import register
from channelwise.errors import InputError
from tests.checkpoint import tiny
from tests.checkpoint.tiny import Save


def _refused(folder: Path, *texts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.fixture
def folder(save: Save) -> Path:
    return save(tiny.quantize(tiny.llama()))


def test_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refused(folder, "model.safetensors", "cut short")
    path.write_bytes(b"")
    _refused(folder, "model.safetensors", "cut short")
    path.unlink()
    _refused(folder, "model.safetensors", "missing")


@pytest.mark.parametrize("key", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight_scale"])
def test_missing_tensor(folder: Path, key: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[key]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _refused(folder, key, "lacks 1 tensors")


def test_tensor_of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _refused(folder, str(folder))


def test_other_versions_and_methods(folder: Path) -> None:
    _edit(folder, lambda config: config["quantization_config"].update(format_version=3))
    _refused(folder, "config.json", "format version 3")
    _edit(folder, lambda config: config["quantization_config"].update(quant_method="gptq"))
    _refused(folder, "gptq")
    _edit(folder, lambda config: config.pop("quantization_config"))
    _refused(folder, "not a channelwise checkpoint")
    (folder / "config.json").write_text("{")
    _refused(folder, "config.json", "JSON")
    _refused(folder / "elsewhere", "no config.json")


def test_damaged_schemes(folder: Path) -> None:
    _edit(folder, lambda config: config["quantization_config"]["linears"][0]["scheme"].pop("weights"))
    _refused(folder, "config.json", "weights")


def test_damaged_embeddings(save: Save) -> None:
    folder = save(tiny.quantize_embedding(tiny.quantize(tiny.llama())))
    _edit(folder, lambda config: config["quantization_config"]["embeddings"][0]["scheme"].update(dtype="int8"))
    _refused(folder, "config.json", "int8")


def test_version_1_is_still_read(folder: Path) -> None:
    expected = tiny.outputs(load_checkpoint(folder)[0])

    def older(config: dict[str, Any]) -> None:
        quantization = config["quantization_config"]
        quantization["format_version"] = 1
        del quantization["embeddings"]
        for group in quantization["linears"]:
            del group["scheme"]["exponents"]

    _edit(folder, older)
    assert torch.equal(tiny.outputs(load_checkpoint(folder)[0]), expected)


def test_unknown_class(folder: Path) -> None:
    _edit(folder, lambda config: config.update(architectures=["LhamaForCausalLM"]))
    _refused(folder, "LhamaForCausalLM")


def test_model_without_these_layers(folder: Path) -> None:
    _edit(folder, lambda config: config["quantization_config"]["linears"][0].update(modules=["nowhere"]))
    _edit(
        folder,
        lambda config: config["quantization_config"].update(linears=config["quantization_config"]["linears"][:1]),
    )
    _refused(folder, "nowhere")


def test_transformers_refuses_other_versions(folder: Path) -> None:
    _edit(folder, lambda config: config["quantization_config"].update(format_version=3))
    with pytest.raises(InputError, match="format version 3"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_registering_twice_is_harmless() -> None:
    register()
    register()


@pytest.mark.parametrize("missing", ["linears", "embeddings", "recipe", "unfused_experts", "attention_bits"])
def test_format_names_what_is_missing(missing: str) -> None:
    config = to_config(CheckpointFormat({}))
    del config[missing]
    with pytest.raises(InputError, match=missing):
        from_config(config, "x/config.json")
