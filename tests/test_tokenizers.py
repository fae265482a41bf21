"""Whatever files a model's tokenizer is made of, the checkpoint's tokenizer gives the same ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import channelwise
from channelwise.errors import InputError
from channelwise.model.loading import load_model
from tests.cli import tiny

TEXT = "the cat sees the red house. <extra> über 東京 <|end|> x"


def fast(folder: Path) -> None:
    tiny.byte_tokenizer().save_pretrained(folder)


def slow(folder: Path) -> None:
    """GPT-2's two files, with no tokenizer.json."""
    parts = json.loads(tiny.byte_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [" ".join(merge) for merge in parts["merges"]]
    (folder / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    names = {"eos_token": "<|end|>", "bos_token": "<|end|>", "unk_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))


def slow_with_added_tokens(folder: Path) -> None:
    slow(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 320, "<more>": 321}))


def word_pieces(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sees", "red", "house", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


def in_a_folder(folder: Path) -> None:
    """As a processor of several parts keeps it."""
    fast(folder / "tokenizer")


def with_special_tokens(folder: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>", "<image>"]})
    tokenizer.save_pretrained(folder)


KINDS: dict[str, tuple[Callable[[Path], None], int]] = {
    "fast": (fast, tiny.VOCABULARY),
    "slow": (slow, tiny.VOCABULARY),
    "slow with added tokens": (slow_with_added_tokens, tiny.VOCABULARY + 2),
    "word pieces": (word_pieces, tiny.VOCABULARY),
    "in a folder": (in_a_folder, tiny.VOCABULARY),
    "padded embedding": (fast, tiny.VOCABULARY + 64),
    "special tokens without rows": (with_special_tokens, tiny.VOCABULARY),
}


def quantize(source: Path, output: Path, texts: list[str]) -> None:
    channelwise.quantize(source, recipe="rtn-w8a8", data=texts, samples=2, length=16, output=output)


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_tokenizes_as_the_model(kind: str, tmp_path: Path) -> None:
    write, rows = KINDS[kind]
    source = tiny.saved(tiny.llama(vocab_size=rows), None, tmp_path / "source")
    write(source)
    place = source / "tokenizer" if kind == "in a folder" else source
    wanted = transformers.AutoTokenizer.from_pretrained(place)(TEXT)["input_ids"]
    quantize(source, tmp_path / "output", tiny.sentences(80))
    assert channelwise.load(tmp_path / "output")[1](TEXT)["input_ids"] == wanted
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "output")(TEXT)["input_ids"] == wanted


def test_a_second_tokenizer_in_a_folder_comes_along(tmp_path: Path) -> None:
    source = tiny.saved(tiny.llama(), tiny.byte_tokenizer(), tmp_path / "source")
    tiny.word_tokenizer().save_pretrained(source / "qformer_tokenizer")
    quantize(source, tmp_path / "output", tiny.sentences(80))
    for path in (source / "qformer_tokenizer").iterdir():
        assert (tmp_path / "output" / "qformer_tokenizer" / path.name).read_bytes() == path.read_bytes()


def test_a_text_with_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    source = tiny.saved(tiny.llama(), None, tmp_path / "source")
    with_special_tokens(source)
    with pytest.raises(InputError, match="gives token id 320, the model's vocabulary has 320 entries"):
        quantize(source, tmp_path / "output", [f"{text} <extra>" for text in tiny.sentences(80)])
    assert not (tmp_path / "output").exists()


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    source = tiny.saved(tiny.llama(vocab_size=300), tiny.byte_tokenizer(), tmp_path / "source")
    with pytest.raises(InputError, match="token ids up to 319, the model embeds 300"):
        load_model(source)


def test_a_sentencepiece_file_names_the_packages_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.saved(tiny.llama(), None, tmp_path / "source")
    (source / "tokenizer.model").write_bytes(b"no pieces")
    monkeypatch.setattr("channelwise.model.tokenizers.SENTENCEPIECE", ("no_such_package",))
    with pytest.raises(InputError, match=r"tokenizer.model is read by sentencepiece: `pip install sentencepiece"):
        load_model(source)


def test_an_encoder_without_a_pooler_is_quantized(tmp_path: Path) -> None:
    model: Any = transformers.BertModel(tiny.bert().config, add_pooling_layer=False).eval()
    source = tiny.saved(model, tiny.word_tokenizer(), tmp_path / "source")
    quantize(source, tmp_path / "output", tiny.sentences(80))
    loaded, _ = channelwise.load(tmp_path / "output")
    assert loaded.pooler is None
    channelwise.quantize(
        model, recipe="rtn-w8a8", data=tiny.sentences(80), tokenizer=tiny.word_tokenizer(), samples=2, length=16
    )
    ids = torch.arange(4, 14)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids)[0], model(ids)[0])
