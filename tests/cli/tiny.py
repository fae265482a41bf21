"""Tiny models on disk, made on the spot: a Llama with a byte-level tokenizer of its own, and a BERT."""

import random
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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


def saved(model: Any, tokenizer: Any, directory: Path) -> Path:
    """The model's directory, as transformers writes it."""
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory
