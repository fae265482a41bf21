"""Token ids in batches without padding."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.batches import (
    TOKENS_PER_BATCH,
    calibration_batches,
    length_limit,
    token_stream,
    window_length,
)
from channelwise.model.texts import Texts
from tests.cli import tiny

STREAM = Texts("stream.txt", (" ".join(tiny.sentences(300)),), is_stream=True)
LIST = Texts("list.tsv", tuple(tiny.sentences(50)))


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.llama()


@pytest.fixture(scope="module")
def bert() -> Any:
    return tiny.bert()


def ids_of(batches: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [row.tolist() for batch in batches for row in batch["input_ids"]]


def test_a_causal_model_gets_windows_of_the_stream(llama: Any) -> None:
    tokenizer = tiny.byte_tokenizer()
    batches = calibration_batches(STREAM, tokenizer, llama, samples=10**6, length=64, seed=0)
    stream = token_stream(STREAM, tokenizer)
    assert ids_of(batches) == stream[: len(stream) // 64 * 64].view(-1, 64).tolist()
    assert all(batch["input_ids"].numel() <= TOKENS_PER_BATCH and set(batch) == {"input_ids"} for batch in batches)


def test_samples_are_chosen_by_the_seed_without_repetition(llama: Any) -> None:
    tokenizer = tiny.byte_tokenizer()
    chosen = [
        ids_of(calibration_batches(STREAM, tokenizer, llama, samples=20, length=16, seed=seed)) for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len({tuple(window) for window in chosen[0]}) == 20


def test_an_encoder_gets_one_text_a_sample_and_no_padding(bert: Any) -> None:
    batches = calibration_batches(LIST, tiny.word_tokenizer(), bert, samples=50, length=8, seed=0)
    rows = ids_of(batches)
    assert len(rows) == 50
    assert max(map(len, rows)) == 8
    assert all(row[0] == 2 and row[-1] == 3 and 0 not in row for row in rows)
    assert all(bool((batch["attention_mask"] == 1).all()) for batch in batches)


def test_an_encoder_gets_wrapped_windows_of_a_stream(bert: Any) -> None:
    rows = ids_of(calibration_batches(STREAM, tiny.word_tokenizer(), bert, samples=5, length=32, seed=0))
    assert len(rows) == 5
    assert all(len(row) == 32 and row[0] == 2 and row[-1] == 3 for row in rows)


@pytest.mark.parametrize(("kind", "name"), [("llama", "byte"), ("bert", "word")])
def test_less_than_a_window(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    model, tokenizer = request.getfixturevalue(kind), getattr(tiny, f"{name}_tokenizer")()
    texts = Texts("short.txt", ("the cat sees",), is_stream=True)
    with pytest.raises(InputError, match=r"short.txt has \d+ tokens, fewer than one window of 32"):
        calibration_batches(texts, tokenizer, model, samples=1, length=32, seed=0)


def test_token_ids_as_a_tensor(llama: Any) -> None:
    ids = torch.randint(tiny.VOCABULARY, (6, 10))
    assert ids_of(calibration_batches(ids.int(), None, llama, samples=6, length=3, seed=0)) == ids.tolist()


def test_pixel_values_as_a_tensor() -> None:
    batches = calibration_batches(torch.rand(10, 3, 16, 16), None, tiny.vit(), samples=9, length=3, seed=0)
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(8, 3, 16, 16), (1, 3, 16, 16)]


def test_pixel_values_of_another_size() -> None:
    with pytest.raises(InputError, match=r"\[3, 8, 8\].*own size"):
        calibration_batches(torch.rand(4, 3, 8, 8), None, tiny.vit(), samples=2, length=3, seed=0)


def test_images_are_chosen_by_the_seed_and_only_those_are_decoded(tmp_path: Path) -> None:
    folder = tiny.image_folder(tmp_path, ["star"] * 20)
    processor = tiny.image_processor()
    everything = processor(images=list(tiny.pictures(20)), return_tensors="pt")["pixel_values"]

    def chosen(seed: int) -> list[int]:
        batches = calibration_batches(folder, None, tiny.vit(), samples=9, length=3, seed=seed, processor=processor)
        assert [len(batch["pixel_values"]) for batch in batches] == [8, 1]
        rows = torch.cat([batch["pixel_values"] for batch in batches])
        return [next(i for i, row in enumerate(everything) if torch.equal(row, found)) for found in rows]

    places = chosen(0)
    assert places == chosen(0) == sorted(set(places)) != chosen(1)
    (folder / "star" / f"{min(set(range(20)) - set(places)):03}.png").write_text("broken")
    assert chosen(0) == places
    (folder / "star" / f"{places[4]:03}.png").write_text("broken")
    with pytest.raises(InputError, match=rf"1 of 9 images cannot be read, first .*{places[4]:03}.png"):
        chosen(0)


def test_texts_and_images_go_to_models_that_read_them(llama: Any, tmp_path: Path) -> None:
    folder = tiny.image_folder(tmp_path, ["star"])
    for data in (folder, torch.rand(2, 3, 4, 4)):
        with pytest.raises(InputError, match="LlamaForCausalLM reads no images"):
            calibration_batches(data, tiny.byte_tokenizer(), llama, samples=1, length=4, seed=0)
    for texts in (LIST, torch.ones(2, 3, dtype=torch.int64)):
        with pytest.raises(InputError, match="ViTForImageClassification reads images"):
            calibration_batches(texts, None, tiny.vit(), samples=1, length=4, seed=0)


@pytest.mark.parametrize(
    "data", [torch.rand(3, 4), torch.ones(5, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64)]
)
def test_other_tensors_are_refused(llama: Any, data: torch.Tensor) -> None:
    with pytest.raises(InputError, match="token ids"):
        calibration_batches(data, None, llama, samples=1, length=4, seed=0)


@pytest.mark.parametrize("wrong", [-1, tiny.VOCABULARY])
def test_ids_beyond_the_vocabulary(llama: Any, wrong: int) -> None:
    with pytest.raises(InputError, match=f"token id {wrong}.*{tiny.VOCABULARY} entries"):
        calibration_batches(torch.tensor([[1, wrong]]), None, llama, samples=1, length=2, seed=0)


def test_no_tokenizer(llama: Any) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        calibration_batches(STREAM, None, llama, samples=1, length=2, seed=0)


def test_window_length() -> None:
    assert window_length(None, 512, None) == 512
    assert window_length(None, 512, 100) == 100
    assert window_length(50, 512, 100) == 50
    for wrong in (1, 101):
        with pytest.raises(InputError, match="--length"):
            window_length(wrong, 512, 100)


def test_length_limit_counts_what_the_position_table_keeps_for_padding() -> None:
    model = nn.Module()
    model.config = SimpleNamespace(max_position_embeddings=514)
    model.position_embeddings = nn.Embedding(514, 4, padding_idx=1)
    assert length_limit(model, None) == 512
    assert length_limit(model, SimpleNamespace(model_max_length=128)) == 128
    assert length_limit(nn.Module(), SimpleNamespace(model_max_length=10**30)) is None
