"""Models of text and images, or text and sounds: the language model is quantized, their towers are left as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import channelwise
from channelwise.errors import InputError
from channelwise.model.loading import load_model
from channelwise.recipe import load_recipe
from channelwise.runtime.linear import QuantizedLinear
from tests.cli import tiny
from tests.model.tiny_towers import FAMILIES, IMAGE_TOKEN, logits, mixed_batch, multi_modal, text_batch

SETTINGS = {"rtn-w8a8": (), "outliertune-w8a8": (), "gptq-ada-w4g128": ("weights.group_size=16",)}
RUNS = [(name, "rtn-w8a8") for name in FAMILIES]
RUNS += [("llava", recipe) for recipe in SETTINGS if recipe != "rtn-w8a8"]


def quantize(model: Any, recipe: str, **more: Any) -> Any:
    ids = text_batch(rows=8, tokens=24)["input_ids"]
    chosen = load_recipe(recipe, SETTINGS[recipe])
    return channelwise.quantize(model, recipe=chosen, data=ids, samples=4, length=24, **more)


@pytest.mark.parametrize(("name", "recipe"), RUNS)
def test_only_the_language_model_is_quantized_and_reads_images_as_in_memory(
    name: str, recipe: str, tmp_path: Path
) -> None:
    original = multi_modal(name)
    source = tiny.saved(original, None, tmp_path / "source")
    quantize(source, recipe, output=tmp_path / "output")
    loaded, _ = channelwise.load(tmp_path / "output")

    in_memory = quantize(load_model(source)[0], recipe).model
    for batch in (text_batch(), mixed_batch(name)):
        assert torch.equal(logits(loaded, batch), logits(in_memory, batch))

    quantized = [full for full, module in loaded.named_modules() if isinstance(module, QuantizedLinear)]
    assert quantized
    assert all(full.startswith(f"{FAMILIES[name].blocks}.") for full in quantized)
    before, after = original.state_dict(), loaded.state_dict()
    beside = [key for key in before if key.startswith(tuple(f"{tower}." for tower in FAMILIES[name].floating))]
    assert beside
    assert all(torch.equal(before[key], after[key]) for key in beside)


def test_the_processor_beside_the_model_comes_along(tmp_path: Path) -> None:
    processor = llava_processor()
    source = tiny.saved(multi_modal("llava"), None, tmp_path / "source")
    processor.save_pretrained(source)
    assert (source / "additional_chat_templates" / "short.jinja").is_file()
    (source / "video_preprocessor_config.json").write_text("{}")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(tiny.sentences(60)))
    channelwise.quantize(source, recipe="rtn-w8a8", data=text, samples=4, length=16, output=tmp_path / "output")
    names = ("video_preprocessor_config.json", "chat_template.jinja", "additional_chat_templates/short.jinja")
    for name in (*names, "processor_config.json"):
        assert (tmp_path / "output" / name).read_bytes() == (source / name).read_bytes()
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "output")
    picture = Image.fromarray(tiny.pictures(1)[0])
    wanted, found = (
        each(text="see <image> the cat", images=picture, return_tensors="pt") for each in (processor, again)
    )
    assert (wanted["input_ids"] == IMAGE_TOKEN).sum() == FAMILIES["llava"].tokens
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    loaded, _ = channelwise.load(tmp_path / "output")
    assert torch.isfinite(logits(loaded, dict(found))).all()


def llava_processor() -> Any:
    """Of images of 28 × 28, which take four tokens; with two chat templates."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template={"default": "{{ messages }}", "short": "{{ messages[-1] }}"},
    )


ENCODER_DECODER = {"vocab_size": 64, "d_model": 32, "decoder_start_token_id": 0, "pad_token_id": 0}
WHISPER = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_mel_bins": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BERT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
REFUSED: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": {**ENCODER_DECODER, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "WhisperForConditionalGeneration": {**ENCODER_DECODER, **WHISPER, "max_source_positions": 50},
    "BertForMultipleChoice": BERT,
    "CLIPModel": {"text_config": {**CLIP, "vocab_size": 64}, "vision_config": {**CLIP, "image_size": 28}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_run_on_text_alone_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    model_class = getattr(transformers, name)
    source = tiny.saved(model_class(model_class.config_class(**REFUSED[name])), None, tmp_path / "source")
    ids = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=f"{name} cannot be run on input_ids.* alone") as refusal:
        channelwise.quantize(source, recipe="rtn-w8a8", data=ids, output=tmp_path / "output")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "output").exists()
