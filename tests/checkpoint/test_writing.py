"""A checkpoint is there whole or not at all."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors import SafetensorError

from channelwise.checkpoint import shards, writer
from channelwise.checkpoint.loader import load_checkpoint
from channelwise.checkpoint.writer import check_output, save_checkpoint
from channelwise.errors import InputError
from tests.checkpoint import tiny
from tests.checkpoint.tiny import Save


def _raises(error: BaseException) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_IN_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("stage", ["save_file", "_write_texts", "_write_config", "_sync", "rename"])
@pytest.mark.parametrize("error", [FULL, FULL_IN_SAFETENSORS, KeyboardInterrupt(), RuntimeError("x")], ids=repr)
@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_what_was_there(
    stage: str, error: BaseException, existing: bool, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existing:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("old")
    owner: Any = Path if stage == "rename" else shards if stage == "save_file" else writer
    monkeypatch.setattr(owner, stage, _raises(error))
    is_full = error in (FULL, FULL_IN_SAFETENSORS)
    with pytest.raises(InputError if is_full else type(error), match="no space left" if is_full else None):
        save(tiny.quantize(tiny.llama(num_hidden_layers=1)), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    if existing:
        assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_failure_of_the_last_rename_puts_the_old_one_back(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        save(tiny.quantize(tiny.llama(num_hidden_layers=1)), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_existing_directory_is_refused_and_overwritten_only_on_demand(save: Save, tmp_path: Path) -> None:
    first, second = tiny.quantize(tiny.llama()), tiny.quantize(tiny.llama())
    folder = save(first)
    (folder / "stale.txt").write_text("old")
    with pytest.raises(InputError, match="--overwrite"):
        save(second)
    assert torch.equal(tiny.outputs(load_checkpoint(folder)[0]), tiny.outputs(first))
    save(second, overwrite=True)
    assert torch.equal(tiny.outputs(load_checkpoint(folder)[0]), tiny.outputs(second))
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    check_output(tmp_path / "home", overwrite=False)
    (tmp_path / "home" / "letters.txt").write_text("")
    check_output(tmp_path / "new" / "deep", overwrite=False)
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file" / "below", overwrite=True)
    with pytest.raises(InputError, match="not empty"):
        check_output(tmp_path / "home", overwrite=False)
    with pytest.raises(InputError, match="holds no model"):
        check_output(tmp_path / "home", overwrite=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="not writable"):
        check_output(tmp_path / "new", overwrite=False)
    assert not (tmp_path / "new").exists()


def _tokenizer() -> Any:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")


def test_tokenizer_generation_config_and_processor_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "preprocessor_config.json").write_text("{}")
    (source / "1_Pooling" / "config.json").write_text('{"p": 1}')
    model = tiny.quantize(tiny.llama())
    model.generation_config.max_length = 17
    settings: Any = {"recipe": {}, "source_name": str(source), "record": {}, "overwrite": False}
    save_checkpoint(model, _tokenizer(), tmp_path / "out", **settings)
    loaded, tokenizer = load_checkpoint(tmp_path / "out")
    assert tokenizer("b a c")["input_ids"] == [1, 0, 2]
    assert loaded.generation_config.max_length == 17
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text()) == {"p": 1}


def test_what_was_chosen_lies_beside_the_weights(save: Save) -> None:
    record = {"sites": [{"name": "q", "layers": {"q": {"direction": "ic", "loss_oc": 2.5, "loss_ic": 1.5}}}]}
    folder = save(tiny.quantize(tiny.llama()), record=record)
    assert json.loads((folder / "quantization_record.json").read_text()) == record


def test_card(save: Save) -> None:
    recipe = {"name": "os-plus-w8a8", "summary": "All of it", "stream": {"method": {"name": "os_plus"}}}
    folder = save(tiny.quantize(tiny.llama()), recipe=recipe, source_name="facebook/opt-125m")
    card = (folder / "README.md").read_text()
    for text in ("import channelwise", "at random", "2304.09145", "os-plus-w8a8", "facebook/opt-125m"):
        assert text in card
    assert "Quantized embedding" not in card


def test_card_of_llm_fp4_with_an_embedding(save: Save) -> None:
    recipe = {"name": "llm-fp4", "stream": {"method": {"name": "llm_fp4"}}}
    card = (save(tiny.quantize_embedding(tiny.quantize(tiny.llama())), recipe=recipe) / "README.md").read_text()
    assert "2310.16836" in card
    # 4 bits, and a float32 scale for 16 entries.
    assert "Quantized embeddings: 1, 6.00 bits per weight" in card


def test_a_part_of_a_mapped_file_is_written_without_a_copy() -> None:
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(3, 4), "second": torch.nn.Linear(3, 4)})
    file = torch.arange(30, dtype=torch.float32).bfloat16()
    model["first"].weight = torch.nn.Parameter(file[5:17].view(4, 3))
    model["second"].weight = torch.nn.Parameter(file[17:29].view(3, 4).t())
    found = shards.checkpoint_tensors(model)
    first, second = found["first.weight"], found["second.weight"]
    assert first.data_ptr() == file[5:].data_ptr()
    assert second.data_ptr() != file[17:].data_ptr()
    for stored, own in ((first, model["first"].weight), (second, model["second"].weight)):
        assert stored.dtype == torch.bfloat16
        assert torch.equal(stored, own)
        assert stored.is_contiguous()
        assert stored.untyped_storage().nbytes() == 24
