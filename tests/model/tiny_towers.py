"""Tiny random models of text and images, or text and sounds, whose towers are larger than the language model.

FAMILIES: name -> (model class, config arguments, prefix of the language model's blocks, what stays floating point).
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 330
IMAGE_TOKEN = 320
"""The first id behind the byte-level tokenizer of tests.cli.tiny."""
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
HEADS = {**TEXT, "head_dim": 8}
TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model"}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 32,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 321,
    "vision_start_token_id": 322,
    "vision_end_token_id": 323,
}


@dataclass(frozen=True)
class Family:
    """One kind of model. tokens: how many an image takes; pixels: shape of what the model takes for one; more: beside.

    floating: the modules beside the blocks that stay in floating point.
    """

    name: str
    arguments: dict[str, Any]
    blocks: str
    floating: tuple[str, ...]
    tokens: int
    pixels: tuple[int, ...]
    input: str = "pixel_values"
    more: dict[str, Any] = field(default_factory=dict)


LANGUAGE = "model.language_model.layers"
LLAVA = ("model.vision_tower", "model.multi_modal_projector")
GRID = {"image_grid_thw": torch.tensor([[1, 4, 4]])}
FAMILIES: dict[str, Family] = {
    "llava": Family(
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {**TOWER, "model_type": "clip_vision_model", "projection_dim": 32},
            "image_token_index": IMAGE_TOKEN,
        },
        LANGUAGE,
        LLAVA,
        4,
        (1, 3, 28, 28),
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {**QWEN, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
            **QWEN_TOKENS,
        },
        LANGUAGE,
        ("model.visual",),
        4,
        (16, 3 * 2 * 14 * 14),
        more=GRID,
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**HEADS, "rope_parameters": ROPE},
            "vision_config": {
                **QWEN,
                "patch_size": 16,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            **QWEN_TOKENS,
        },
        LANGUAGE,
        ("model.visual",),
        4,
        (16, 3 * 2 * 16 * 16),
        more=GRID,
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**HEADS, "sliding_window": 8, "query_pre_attn_scalar": 8},
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_id": IMAGE_TOKEN,
            "boi_token_index": 321,
            "eoi_token_index": 322,
        },
        LANGUAGE,
        LLAVA,
        4,
        (1, 3, 28, 28),
    ),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": TOWER,
            "scale_factor": 2,
            "image_token_id": IMAGE_TOKEN,
        },
        "model.text_model.layers",
        ("model.vision_model", "model.connector"),
        1,
        (1, 1, 3, 28, 28),
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {"model_type": "gemma", **HEADS},
            "vision_config": {**SIGLIP, "projection_dim": 32},
            "projection_dim": 32,
            "image_token_index": IMAGE_TOKEN,
        },
        LANGUAGE,
        LLAVA,
        4,
        (1, 3, 28, 28),
    ),
    "qwen2_audio": Family(
        "Qwen2AudioForConditionalGeneration",
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "audio_config": {
                "d_model": 64,
                "encoder_layers": 3,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 256,
                "num_mel_bins": 16,
                "max_source_positions": 50,
            },
            "audio_token_index": IMAGE_TOKEN,
        },
        LANGUAGE,
        ("model.audio_tower", "model.multi_modal_projector"),
        25,
        (1, 16, 100),
        input="input_features",
        more={"feature_attention_mask": torch.ones((1, 100), dtype=torch.int64)},
    ),
}


def multi_modal(name: str, **more: Any) -> Any:
    """The random model of that family, in evaluation mode; more: config arguments."""
    family = FAMILIES[name]
    model_class = getattr(transformers, family.name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**deepcopy(family.arguments), **more})).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model.requires_grad_(False)


def text_batch(rows: int = 2, tokens: int = 12, seed: int = 3) -> dict[str, torch.Tensor]:
    """Token ids without an image."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(5, 250, (rows, tokens), generator=generator)}


def mixed_batch(name: str) -> dict[str, torch.Tensor]:
    """A text with an image, or a sound, in it."""
    family = FAMILIES[name]
    ids = text_batch(rows=1)["input_ids"]
    image = torch.full((1, family.tokens), IMAGE_TOKEN)
    ids = torch.cat([ids[:, :3], image, ids[:, 3:]], dim=1)
    pixels = torch.randn(family.pixels, generator=torch.Generator().manual_seed(7))
    batch = {"input_ids": ids, family.input: pixels, **family.more}
    if name in ("gemma3", "paligemma"):
        batch["token_type_ids"] = (ids == IMAGE_TOKEN).long()
    if name.startswith("qwen") and family.input == "pixel_values":
        batch["mm_token_type_ids"] = (ids == IMAGE_TOKEN).long()
    if family.input == "input_features":
        batch["attention_mask"] = torch.ones_like(ids)
    return batch


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model says of the next tokens."""
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found
