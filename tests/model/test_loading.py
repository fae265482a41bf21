"""What is wrong with a model is told in one line, and nothing is ever initialised at random."""

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils import logging

from channelwise.errors import InputError
from channelwise.model.loading import load_model
from tests.model.tiny_models import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama", torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder, 64)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def save_tokenizer(folder: Path, size: int) -> None:
    vocabulary = {f"t{index}": index for index in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def edit_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def assert_refused(path: Path | str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_saved_model_comes_back_with_its_tokenizer_and_dtype(saved: Path) -> None:
    model, tokenizer = load_model(saved)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert next(model.parameters()).dtype == torch.bfloat16
    assert tokenizer("t3 t5")["input_ids"] == [3, 5]
    expected = tiny_model("llama", torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert next(load_model(str(saved), torch.float32)[0].parameters()).dtype == torch.float32


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    tiny_model("vit", torch.float32).save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path)
    assert type(model).__name__ == "ViTForImageClassification"
    assert tokenizer is None


def test_transformers_says_nothing_and_speaks_again_afterwards(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(saved)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_what_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path, "config.json")
    assert_refused(tmp_path / "file", "is a file")
    assert_refused(tmp_path / "nothing", "no directory")
    assert_refused("no-such-owner/no-such-model", "neither a directory nor a model on the hub")


def test_a_damaged_config_is_refused(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    assert_refused(broken, "config.json", "JSON")
    (broken / "config.json").write_text("[]")
    assert_refused(broken, "config.json", "object")


def test_an_unknown_architecture_is_refused(broken: Path) -> None:
    edit_config(broken, architectures=["NoSuchModel"])
    assert_refused(broken, "no class NoSuchModel")
    edit_config(broken, architectures=None)
    assert_refused(broken, "no architectures")


def test_an_already_quantized_model_is_refused_unless_allowed(broken: Path) -> None:
    edit_config(broken, quantization_config={"quant_method": "no-such-method"})
    assert_refused(broken, "already quantized")
    assert load_model(broken, allow_quantized=True)[1] is not None


def test_a_cut_or_missing_weight_file_is_refused_by_name(broken: Path) -> None:
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    for size in (len(whole) // 2, 4, 0):
        weights.write_bytes(whole[:size])
        assert_refused(broken, str(weights), "cut short or damaged")
    weights.unlink()
    assert_refused(broken, "no weights")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(broken, "model-00001-of-00002.safetensors is missing")


def test_missing_tensors_are_refused_by_name(broken: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1.mlp" in name or "layers.1.self_attn.q" in name]:
            del tensors[name]

    edit_weights(broken, drop)
    assert_refused(broken, "lacks model.layers.1.mlp.down_proj.weight", "and 1 more", "no whole LlamaForCausalLM")


def test_tensors_of_another_shape_are_refused(broken: Path) -> None:
    edit_config(broken, intermediate_size=40)
    assert_refused(broken, "has other shapes for model.layers.0.mlp.down_proj.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_tensor(broken: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    edit_weights(broken, spoil)
    assert_refused(broken, "model.layers.1.mlp.up_proj.weight", "not finite")


def test_a_tokenizer_of_another_model_is_refused(broken: Path) -> None:
    save_tokenizer(broken, 70)
    assert_refused(broken, "does not belong", "69", "64")


def test_a_damaged_tokenizer_is_refused(broken: Path) -> None:
    (broken / "tokenizer.json").write_text('{"version": 1')
    assert_refused(broken, "tokenizer")


def test_the_demo_is_a_model_or_says_that_it_is_missing() -> None:
    if not (resources.files("channelwise") / "bundled" / "config.json").is_file():
        assert_refused("demo", "bundled")
        return
    model, tokenizer = load_model("demo")
    assert tokenizer is not None and not model.training
