"""From files of stages to a checkpoint: the same bytes as from memory, or the files themselves as shards."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from channelwise.checkpoint import shards
from channelwise.checkpoint.assembly import gather_weights, put_in_place
from channelwise.checkpoint.counting import Counted, counted
from channelwise.checkpoint.loader import load_checkpoint
from channelwise.checkpoint.shards import checkpoint_tensors, pieces_of, write_shards, write_weight_file
from channelwise.checkpoint.working import FinishedStage, WorkingDirectory
from channelwise.checkpoint.writer import format_of, recorded_run, save_checkpoint, write_checkpoint_texts
from tests.checkpoint import tiny
from tests.checkpoint.runs import contents

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def stages(tmp_path: Path) -> tuple[list[Path], Tensors]:
    """Three files, and all their tensors."""
    tensors = {f"{block}.{name}": torch.randn(4, 4) for block in "cab" for name in ("x", "y")}
    tensors["b.z"] = torch.arange(7, dtype=torch.uint8)
    paths = [tmp_path / f"{block}.safetensors" for block in "cab"]
    for path in paths:
        write_weight_file({name: value for name, value in tensors.items() if name[0] == path.name[0]}, path)
    return paths, tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


class TestWeights:
    def test_of_small_stages_are_the_one_file_that_memory_gives(
        self, stages: tuple[list[Path], Tensors], folder: Path, tmp_path: Path
    ) -> None:
        paths, tensors = stages
        gather_weights(paths, folder)
        (tmp_path / "other").mkdir()
        write_shards(tensors, tmp_path / "other")
        assert contents(folder) == contents(tmp_path / "other")

    def test_of_large_stages_are_their_files(self, stages: tuple[list[Path], Tensors], folder: Path) -> None:
        paths, tensors = stages
        gather_weights(paths, folder, single_file=sum(path.stat().st_size for path in paths) - 1)
        names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
        assert all((folder / name).samefile(path) for name, path in zip(names, paths, strict=True))
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": 6 * 64 + 7}
        assert index["weight_map"] == {name: names["cab".index(name[0])] for name in index["weight_map"]}
        assert index["weight_map"].keys() == tensors.keys()

    def test_are_copied_where_there_are_no_links(
        self, stages: tuple[list[Path], Tensors], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        gather_weights(stages[0], folder, single_file=0)
        copies = sorted(folder.glob("*.safetensors"))
        assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for path in stages[0]]
        assert not any(copy.samefile(path) for copy, path in zip(copies, stages[0], strict=True))

    @pytest.mark.parametrize("single_file", [0, 2**20])
    def test_of_one_name_in_two_files_are_refused(self, single_file: int, folder: Path, tmp_path: Path) -> None:
        paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
        for path in paths:
            write_weight_file({"w": torch.zeros(1)}, path)
        with pytest.raises(ValueError, match="both hold w"):
            gather_weights(paths, folder, single_file)


class TestWeightFiles:
    def test_pieces_hold_at_most_so_many_bytes_or_one_tensor(self) -> None:
        sizes = {"a": 3, "b": 3, "c": 2, "d": 9, "e": 2}
        tensors = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
        assert sorted(map(list, pieces_of(tensors, 6))) == [["a", "b"], ["c", "e"], ["d"]]
        assert pieces_of({}, 6) == []

    def test_views_and_shared_memory_are_written(self, tmp_path: Path) -> None:
        whole = torch.randn(4, 6)
        tensors = {"a": whole, "same": whole, "row": whole[1], "column": whole[:, 2], "turned": whole.T}
        write_weight_file(tensors, tmp_path / "x.safetensors")
        found = load_file(tmp_path / "x.safetensors")
        assert all(torch.equal(found[name], value) for name, value in tensors.items())

    def test_mapped_tensors_are_not_copied(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_weight_file({"a": torch.randn(8), "b": torch.randn(8)}, tmp_path / "x.safetensors")
        mapped = load_file(tmp_path / "x.safetensors")
        given: list[Tensors] = []
        save = shards.save_file

        def noted(tensors: Tensors, *more: Any, **named: Any) -> None:
            given.append(tensors)
            save(tensors, *more, **named)

        monkeypatch.setattr(shards, "save_file", noted)
        write_weight_file(mapped, tmp_path / "y.safetensors")
        assert [tensor.data_ptr() for tensor in given[0].values()] == [tensor.data_ptr() for tensor in mapped.values()]

    def test_a_file_that_was_not_finished_has_not_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(shards, "sync_one", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_weight_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
        assert list(tmp_path.iterdir()) == []

    def test_may_be_read_by_whom_the_directory_is_for(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        write_weight_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
        assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


class TestPlace:
    def test_is_taken_again_and_again(self, tmp_path: Path, folder: Path) -> None:
        (folder / "new").write_text("")
        for _ in range(2):
            put_in_place(folder, tmp_path / "out", tmp_path / "replaced")
            assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]

    def test_is_given_back_when_the_last_rename_fails(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("")
        rename = Path.rename

        def failing(self: Path, other: Path) -> Path:
            if self.name == "model":
                raise KeyboardInterrupt
            return rename(self, other)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(folder, tmp_path / "out", tmp_path / "replaced")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]


SETTINGS: dict[str, Any] = {"source_name": "tiny", "record": {"sites": []}}
RECIPE = {"name": "by-hand"}


def _streamed(model: Any, output: Path, **options: Any) -> None:
    """Writes a quantized model stage by stage, and its texts while its weights are on the meta device."""
    tensors = checkpoint_tensors(model)
    names = ["model.layers.0.", "model.layers.1."]
    parts = [{name: value for name, value in tensors.items() if name.startswith(block)} for block in names]
    parts.append({name: value for name, value in tensors.items() if not name.startswith(tuple(names))})
    with WorkingDirectory.opened(output, {}, resume=False, overwrite=False) as working:
        for index, part in enumerate(parts):
            files, size = working.write_stage(index, part, 10**6)
            working.finish(FinishedStage(index, "", files, size, "", {}))
        format, sizes = format_of(model, RECIPE), counted(model.modules())
        model.to("meta")
        texts: Callable[[Path], None] = lambda folder: write_checkpoint_texts(  # noqa: E731
            model, None, folder, format=format, sizes=sizes, run=working.run, **SETTINGS
        )
        working.assemble(texts, **options)


def test_a_streamed_checkpoint_is_the_one_from_memory(tmp_path: Path) -> None:
    model = tiny.quantize(tiny.tied_llama())
    save_checkpoint(model, None, tmp_path / "whole", recipe=RECIPE, overwrite=False, **SETTINGS)
    _streamed(model, tmp_path / "streamed")
    whole, streamed = contents(tmp_path / "whole"), contents(tmp_path / "streamed")
    records = [json.loads(files.pop("quantization_record.json")) for files in (whole, streamed)]
    assert streamed == whole
    assert records[1] == {**records[0], "run": recorded_run(tmp_path / "streamed")}
    assert recorded_run(tmp_path / "whole") is None


def test_a_streamed_checkpoint_in_shards_loads(tmp_path: Path) -> None:
    model = tiny.quantize(tiny.llama())
    expected = tiny.outputs(model)
    _streamed(model, tmp_path / "out", single_file=0)
    assert len(list((tmp_path / "out").glob("model-*-of-00003.safetensors"))) == 3
    assert torch.equal(tiny.outputs(load_checkpoint(tmp_path / "out")[0]), expected)


def test_counts_of_parts_add_up() -> None:
    model = tiny.quantize_embedding(tiny.quantize(tiny.llama()))
    parts = [counted(part.modules(), part.state_dict().values()) for part in (model.model, model.lm_head)]
    assert sum(parts, Counted()) == counted(model.modules(), model.state_dict().values())
    assert (sum(parts, Counted()).linears, sum(parts, Counted()).embeddings) == (14, 1)
