"""Tiny models on disk, made on the spot: a Llama with a byte-level tokenizer of its own, a BERT, classifiers."""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

POSITIONS = 64
VOCABULARY = 320
_TEXT = "the a cat dog house river sees hears under over red blue quick slow and then it was very far from home"
_WORDS = tuple(re.findall(r"\w+", _TEXT))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 4 to 9 words, the same for the same seed."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(_WORDS, k=chance.randint(4, 9))) + "." for _ in range(count)]


def byte_tokenizer() -> Any:
    """Byte-level BPE with one special token, trained on such sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def word_tokenizer() -> Any:
    """Whole words between [CLS] and [SEP], as BERT's kin have them."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*specials, ".", *sorted(set(_WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def llama(**more: Any) -> Any:
    """A random Llama of two blocks of width 32, whose first channel is an outlier after every norm."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **more})).eval()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data[0] = 30.0
    return model


def bert() -> Any:
    """A random BERT of two blocks of width 32."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
    )
    return transformers.BertModel(config).eval()


def bert_classifier() -> Any:
    """A random BERT under a head of three classes: dog, cat, house."""
    torch.manual_seed(0)
    names = ("dog", "cat", "house")
    config = transformers.BertConfig(**{**bert().config.to_dict(), "id2label": dict(enumerate(names))})
    return _lively(transformers.BertForSequenceClassification(config))


def vit(**more: Any) -> Any:
    """A random ViT of two blocks of width 32 for RGB images of 16 × 16, with three classes: circle, square, star."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = ("circle", "square", "star")
    shape = {"image_size": 16, "patch_size": 4, "id2label": dict(enumerate(names))}
    return _lively(transformers.ViTForImageClassification(transformers.ViTConfig(**{**sizes, **shape, **more})))


def _lively(classifier: Any) -> Any:
    """With a head large enough that the items get different answers."""
    for name, parameter in classifier.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "classifier" in name else 0.2)
    return classifier.eval()


def image_processor(side: int = 16, channels: int = 3) -> Any:
    """Resizes to side × side, and takes 0…255 to −1…1."""
    half = [0.5] * channels
    return ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=half, image_std=half)


def pictures(count: int, seed: int = 0) -> Any:
    """uint8 [count, 12, 20, 3]: coloured noise of different brightness."""
    chance = np.random.default_rng(seed)
    brightness = chance.uniform(20, 255, (count, 1, 1, 3))
    return (chance.uniform(0, 1, (count, 12, 20, 3)) * brightness).astype(np.uint8)


def image_folder(directory: Path, labels: Sequence[str], seed: int = 0) -> Path:
    """PNG files of such pictures, one for each label, in the label's sub-folder."""
    for index, (picture, label) in enumerate(zip(pictures(len(labels), seed), labels, strict=True)):
        (directory / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(directory / label / f"{index:03}.png")
    return directory


def saved(model: Any, tokenizer: Any, directory: Path) -> Path:
    """The model's directory, as transformers writes it."""
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory
