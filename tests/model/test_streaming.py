"""A model put in place part by part is the model that transformers loads whole, and memory holds one part at a time."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from channelwise.errors import InputError
from channelwise.model.blocks import find_blocks
from channelwise.model.experts import unfuse_experts
from channelwise.model.loading import load_model
from channelwise.model.skeleton import can_stream, open_skeleton
from channelwise.model.stored import stored_tensors
from channelwise.model.streaming import NotStreamableError, WeightStream
from tests.model.test_loading import edit_config, edit_weights, save_tokenizer
from tests.model.tiny_models import BERT, GPT2, LLAMA, tiny_batch, tiny_model, tiny_output

IS_LINUX = sys.platform == "linux"
FAMILIES = ("llama", "opt", "opt_350m", "gpt2", "gemma3", "qwen3", "bert", "vit", "mixtral", "qwen3_moe")
UP = "model.layers.1.mlp.up_proj.weight"


def save(model: nn.Module, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)  # type: ignore[operator]
    return folder


def put_in_place(folder: Path, dtype: str | torch.dtype = "auto") -> nn.Module:
    """The skeleton with all of its weights."""
    model, _, stream = open_skeleton(folder, dtype)
    stream.load("")
    for name in find_blocks(model).names:
        stream.load(name)
    return model


def assert_same(streamed: nn.Module, whole: nn.Module) -> None:
    """Bit for bit: parameters, all buffers, dtypes, ties, and how the model is set."""
    found, expected = streamed.state_dict(), whole.state_dict()
    assert list(found) == list(expected)
    for name, value in (*expected.items(), *whole.named_buffers()):
        present = found[name] if name in found else streamed.get_buffer(name)
        assert present.dtype == value.dtype, name
        assert torch.equal(present, value), name
    assert len(list(streamed.parameters())) == len(list(whole.parameters()))
    assert not streamed.training and not any(parameter.requires_grad for parameter in streamed.parameters())
    assert streamed.config.to_dict() == whole.config.to_dict()
    assert str(getattr(streamed, "generation_config", None)) == str(getattr(whole, "generation_config", None))


def assert_all_meta(module: nn.Module) -> None:
    assert all(tensor.is_meta for tensor in module.state_dict().values())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(
        tiny_model("llama", torch.bfloat16), tmp_path_factory.mktemp("models") / "llama", max_shard_size="8KB"
    )
    save_tokenizer(folder, 64)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama", torch.bfloat16), tmp_path_factory.mktemp("models") / "single")


@pytest.fixture
def broken(single: Path, tmp_path: Path) -> Path:
    """A copy to break, with all weights in one file."""
    return Path(shutil.copytree(single, tmp_path / "copy"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_parts_together_are_the_model_that_transformers_loads(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    save(tiny_model(name, dtype), tmp_path, max_shard_size="30KB")
    streamed, (whole, _) = put_in_place(tmp_path), load_model(tmp_path)
    assert_same(streamed, whole)
    batch = tiny_batch(whole)
    assert torch.equal(tiny_output(streamed, batch), tiny_output(whole, batch))


def test_a_skeleton_has_a_tokenizer_real_frequencies_and_no_weights(saved: Path) -> None:
    model, tokenizer, _ = open_skeleton(saved)
    assert_all_meta(model)
    assert not model.get_buffer("model.rotary_emb.inv_freq").is_meta
    assert tokenizer("t3 t5")["input_ids"] == [3, 5]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("asked", ["auto", torch.float16, torch.float32], ids=str)
def test_the_working_dtype_is_the_one_that_transformers_takes(
    stored: torch.dtype, asked: str | torch.dtype, tmp_path: Path
) -> None:
    save(tiny_model("llama", stored), tmp_path, max_shard_size="30KB")
    assert_same(put_in_place(tmp_path, asked), load_model(tmp_path, asked)[0])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(put_in_place(tmp_path, asked), load_model(tmp_path, asked)[0])


def test_modules_that_transformers_keeps_in_float32_are_kept(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    save(transformers.T5EncoderModel(config).to(torch.float16), tmp_path)
    streamed = put_in_place(tmp_path)
    assert {parameter.dtype for parameter in streamed.parameters()} == {torch.float16, torch.float32}
    assert_same(streamed, load_model(tmp_path)[0])


@pytest.mark.parametrize(
    ("saved_as", "loaded_as", "arguments"),
    [("GPT2Model", "GPT2LMHeadModel", GPT2), ("BertForMaskedLM", "BertModel", BERT)],
)
def test_a_checkpoint_whose_names_have_a_prefix_more_or_less_is_streamed(
    saved_as: str, loaded_as: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model_class = getattr(transformers, saved_as)
    more = {"add_pooling_layer": False} if loaded_as == "BertModel" else {}
    model = model_class(model_class.config_class(**arguments))
    save(model, tmp_path)
    edit_config(tmp_path, architectures=[loaded_as])
    if more:  # the masked language model has no pooler, which BertModel needs
        tensors = load_file(tmp_path / "model.safetensors")
        pooler = {"bert.pooler.dense.weight": torch.randn(32, 32), "bert.pooler.dense.bias": torch.randn(32)}
        save_file(tensors | pooler, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(put_in_place(tmp_path), load_model(tmp_path)[0])


def test_a_parameter_of_the_model_itself_is_put_in_place(tmp_path: Path) -> None:
    convolutions = {"conv_dim": (16,), "conv_kernel": (3,), "conv_stride": (2,), "num_feat_extract_layers": 1}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**sizes, **convolutions, **positions))
    save(model, tmp_path)
    streamed = put_in_place(tmp_path)
    assert torch.equal(streamed.get_parameter("masked_spec_embed"), model.masked_spec_embed)


class TestTies:
    @pytest.fixture
    def tied(self, tmp_path: Path) -> Path:
        config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
        return save(transformers.LlamaForCausalLM(config), tmp_path / "tied")

    def test_head_and_embedding_are_one_tensor_each_time_they_are_loaded(self, tied: Path) -> None:
        model, _, stream = open_skeleton(tied)
        for _ in range(2):
            stream.load("")
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert not model.lm_head.weight.is_meta
            stream.release("")
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert model.lm_head.weight.is_meta

    def test_a_file_with_both_ties_them_if_they_are_equal_only(self, tied: Path) -> None:
        for factor, is_tied in ((1.0, True), (2.0, False)):
            embedding = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
            edit_weights(tied, lambda tensors: tensors.update({"lm_head.weight": embedding * factor}))  # noqa: B023
            streamed = put_in_place(tied)
            assert_same(streamed, load_model(tied)[0])
            assert (streamed.lm_head.weight is streamed.model.embed_tokens.weight) == is_tied

    def test_a_tie_between_blocks_is_refused(self, single: Path) -> None:
        model, _, _ = open_skeleton(single)
        model.all_tied_weights_keys[UP] = UP.replace("1", "0")
        with pytest.raises(NotStreamableError, match=f"{UP} is tied to .* cannot be streamed"):
            WeightStream(model, single, stored_tensors([single / "model.safetensors"]))


class TestRelease:
    def test_a_part_is_on_meta_again_and_loads_the_same_again(self, saved: Path) -> None:
        model, _, stream = open_skeleton(saved)
        for name in ("", *find_blocks(model).names):
            stream.load(name)
            before = {key: value.clone() for key, value in model.state_dict().items() if not value.is_meta}
            stream.release(name)
            assert_all_meta(model)
            stream.load(name)
            again = {key: value for key, value in model.state_dict().items() if not value.is_meta}
            assert before and before.keys() == again.keys()
            assert all(torch.equal(before[key], again[key]) for key in before)
            stream.release(name)

    def test_one_part_leaves_the_others_alone(self, saved: Path) -> None:
        model, _, stream = open_skeleton(saved)
        stream.load("model.layers.0")
        first = model.get_parameter(UP.replace("1", "0"))
        stream.load("model.layers.1")
        stream.load("")
        stream.release("model.layers.1")
        assert model.get_parameter(UP.replace("1", "0")) is first and not first.is_meta
        assert model.get_parameter(UP).is_meta
        assert not model.get_parameter("lm_head.weight").is_meta

    def test_replaced_modules_give_way_to_those_of_the_skeleton(self, tmp_path: Path) -> None:
        save(tiny_model("mixtral", torch.float32), tmp_path)
        model, _, stream = open_skeleton(tmp_path)
        before = {name: type(module) for name, module in model.named_modules()}
        stream.load("model.layers.0")
        unfuse_experts(model.get_submodule("model.layers.0"))
        model.get_submodule("model.layers.0").self_attn.q_proj = nn.Identity()
        model.model.layers[0] = nn.Sequential(model.model.layers[0])
        stream.release("model.layers.0")
        assert {name: type(module) for name, module in model.named_modules()} == before
        assert_all_meta(model)
        assert_same(put_in_place(tmp_path), load_model(tmp_path)[0])

    @pytest.mark.skipif(not IS_LINUX, reason="reads /proc")
    def test_nothing_maps_the_files_any_more(self, saved: Path) -> None:
        _, _, stream = open_skeleton(saved)
        stream.load("model.layers.0")
        assert str(saved) in Path("/proc/self/maps").read_text()
        stream.release("model.layers.0")
        assert str(saved) not in Path("/proc/self/maps").read_text()

    def test_writing_into_a_weight_changes_no_file(self, single: Path) -> None:
        before = (single / "model.safetensors").read_bytes()
        model, _, stream = open_skeleton(single)
        stream.load("model.layers.1")
        model.get_parameter(UP).zero_()
        stream.release("model.layers.1")
        assert (single / "model.safetensors").read_bytes() == before
        stream.load("model.layers.1")
        assert model.get_parameter(UP).abs().max() > 0


class TestSizes:
    def test_bytes_are_those_of_the_working_dtype_and_ties_count_once(self, tmp_path: Path) -> None:
        config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
        whole = save(transformers.LlamaForCausalLM(config).to(torch.bfloat16), tmp_path)
        model, _, stream = open_skeleton(whole, torch.float32)
        block = sum(4 * parameter.numel() for parameter in model.get_submodule("model.layers.0").parameters())
        assert stream.bytes_of("model.layers.0") == stream.bytes_of("model.layers.1") == block
        assert stream.bytes_of("") == 4 * (64 * 32 + 32)
        assert stream.total_bytes == 2 * block + stream.bytes_of("")

    def test_an_unknown_part_is_an_error(self, single: Path) -> None:
        _, _, stream = open_skeleton(single)
        with pytest.raises(ValueError, match=r"no module model\.layers\.7"):
            stream.load("model.layers.7")


class TestRefused:
    def refused(self, action: Callable[[], Any]) -> str:
        with pytest.raises(InputError) as caught:
            action()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_tensors(self, broken: Path) -> None:
        edit_weights(broken, lambda tensors: tensors.pop(UP))
        assert f"lacks {UP}" in self.refused(lambda: open_skeleton(broken))

    def test_other_shapes(self, broken: Path) -> None:
        edit_config(broken, intermediate_size=40)
        message = self.refused(lambda: open_skeleton(broken))
        assert "has other shapes for model.layers.0.mlp.down_proj.weight" in message

    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_numbers_that_are_not_finite_leave_the_part_on_meta(self, broken: Path, value: float) -> None:
        def spoil(tensors: dict[str, torch.Tensor]) -> None:
            tensors[UP][3, 4] = value

        edit_weights(broken, spoil)
        model, _, stream = open_skeleton(broken)
        stream.load("model.layers.0")
        stream.release("model.layers.0")
        message = self.refused(lambda: stream.load("model.layers.1"))
        assert f"{UP} holds numbers that are not finite" in message
        assert_all_meta(model)

    def test_a_file_cut_short_before_or_after_it_was_opened(self, broken: Path) -> None:
        model, _, stream = open_skeleton(broken)
        weights = broken / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 4])
        assert "model.safetensors is cut short" in self.refused(lambda: open_skeleton(broken))
        assert "model.safetensors is cut short" in self.refused(lambda: stream.load("model.layers.1"))
        assert_all_meta(model)

    def test_a_cut_shard_by_name(self, saved: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(saved, tmp_path / "copy"))
        shard = sorted(copy.glob("*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:-1])
        assert f"{shard} is cut short" in self.refused(lambda: open_skeleton(copy))
        shard.unlink()
        assert f"{shard} is missing" in self.refused(lambda: open_skeleton(copy))

    def test_quantized_models_unknown_classes_and_foreign_tokenizers(self, broken: Path) -> None:
        save_tokenizer(broken, 70)
        assert "does not belong" in self.refused(lambda: open_skeleton(broken))
        edit_config(broken, architectures=["NoSuchModel"])
        assert "no class NoSuchModel" in self.refused(lambda: open_skeleton(broken))
        edit_config(broken, quantization_config={"quant_method": "any"})
        assert "already quantized" in self.refused(lambda: open_skeleton(broken))


def test_what_holds_no_safetensors_alone_cannot_be_streamed(saved: Path, broken: Path, tmp_path: Path) -> None:
    assert can_stream(saved) and can_stream(broken)
    (broken / "adapter_config.json").write_text("{}")
    assert not can_stream(broken)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert not can_stream(tmp_path)


def test_what_a_file_may_lack_is_what_transformers_makes_it(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"layernorm\.weight"])
    edit_weights(broken, lambda tensors: tensors.pop("model.layers.1.input_layernorm.weight"))
    streamed = put_in_place(broken)
    assert torch.equal(streamed.model.layers[1].input_layernorm.weight, torch.ones(32, dtype=torch.bfloat16))
    assert_same(streamed, load_model(broken)[0])


MEASURED = """
import sys, torch
from channelwise.model.blocks import find_blocks
from channelwise.model.skeleton import open_skeleton

def resident(field="VmRSS"):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))

model, _, stream = open_skeleton(sys.argv[1])
stream.load(""), stream.release("")
before = resident()
for name in find_blocks(model).names:
    block = stream.bytes_of(name)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    stream.load(name)
    print(block, resident() - before, end=" ")
    stream.release(name)
    print(resident("VmHWM") - before, resident() - before)
"""


@pytest.mark.skipif(not IS_LINUX, reason="reads /proc")
def test_memory_holds_one_block_at_a_time_and_none_after_it(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 5120, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = transformers.LlamaConfig(
        **sizes, vocab_size=64, dtype="bfloat16", architectures=["LlamaForCausalLM"], tie_word_embeddings=True
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in transformers.LlamaForCausalLM(config).state_dict().items()}
    del shapes["lm_head.weight"]
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    run = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True)
    blocks = [[int(number) for number in line.split()] for line in run.stdout.splitlines()]
    assert len(blocks) == 8
    for block, loaded, peak, released in blocks:
        assert block > 38e6
        assert loaded > 0.9 * block  # the measurement sees a block
        assert peak < 2 * block
        assert released < 0.5 * block
