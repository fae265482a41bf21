"""Where a run works: what it finds there, keeps and leaves; a full disk, and other ranks."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from channelwise.checkpoint import unfinished
from channelwise.checkpoint.disk import DiskError
from channelwise.checkpoint.working import FinishedStage, WorkingDirectory, is_worth_keeping
from channelwise.errors import InputError, NumericalError
from tests.checkpoint import runs
from tests.checkpoint.runs import IDENTITY, STAGES, contents, walk

KILLS = 20
ADVICE = "free some space and run the same command with --resume"
IN_SHARDS = {"single_file": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """The files of an uninterrupted run with these options."""

    def of(**options: Any) -> dict[str, bytes]:
        output = tmp_path_factory.mktemp("whole") / "out"
        walk(output, **options)
        return contents(output)

    return of


def stop_behind(stage: int, error: BaseException | None = None) -> runs.Step:
    def behind(index: int) -> None:
        if index == stage:
            raise error or KeyboardInterrupt

    return behind


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """DIR of a run that was interrupted behind its second stage."""
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path / "out", behind=stop_behind(1))
    return tmp_path / "out"


def left(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished")


class TestBeginning:
    def test_without_an_earlier_run_ends_in_the_directory_and_nothing_beside(self, tmp_path: Path) -> None:
        assert walk(tmp_path / "deep" / "out") == STAGES
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
        assert not list((tmp_path / "deep" / "out").glob(".*"))

    def test_beside_an_unfinished_run_is_refused_with_how_far_it_got(self, stopped: Path) -> None:
        before = contents(left(stopped))
        with pytest.raises(InputError, match=r"2 stages finished, blocks.1 the last.*--resume.*--overwrite"):
            walk(stopped)
        assert contents(left(stopped)) == before

    def test_with_overwrite_removes_an_unfinished_run(self, stopped: Path) -> None:
        assert walk(stopped, overwrite=True) == STAGES
        assert [path.name for path in stopped.parent.iterdir()] == ["out"]

    def test_checks_the_output_and_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "letters.txt").write_text("")
        for resume in (False, True):
            with pytest.raises(InputError, match="not empty"):
                walk(tmp_path / "out", resume=resume)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_while_another_run_is_at_work_is_refused(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"resume": True, "overwrite": True}
        with WorkingDirectory.opened(tmp_path / "out", IDENTITY, **options):
            with pytest.raises(InputError, match="another process is writing"):
                walk(tmp_path / "out", **options)
            assert left(tmp_path / "out").exists()

    def test_goes_without_a_lock_where_the_file_system_has_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
        assert walk(tmp_path / "out") == STAGES


class TestResume:
    def test_goes_on_behind_the_last_finished_stage(
        self, stopped: Path, whole: Callable[..., dict[str, bytes]]
    ) -> None:
        assert walk(stopped, resume=True) == STAGES - 2
        assert contents(stopped) == whole()

    def test_with_nothing_there_begins_anew(self, tmp_path: Path) -> None:
        assert walk(tmp_path / "out", resume=True) == STAGES

    def test_of_a_finished_checkpoint_has_nothing_to_do(self, tmp_path: Path) -> None:
        walk(tmp_path / "out")
        before = contents(tmp_path / "out")
        for overwrite in (False, True):
            assert walk(tmp_path / "out", resume=True, overwrite=overwrite) == 0
        assert contents(tmp_path / "out") == before
        with pytest.raises(InputError, match="not empty"):
            walk(tmp_path / "out", resume=True, identity={"samples": 9})

    def test_of_another_identity_is_refused_with_what_changed(self, stopped: Path) -> None:
        changed = {
            **IDENTITY,
            "recipe": {"name": "by-hand", "weights": {"bits": 3, "groups": [128, 64]}},
            "data": "1" * 64,
        }
        before = contents(left(stopped))
        with pytest.raises(InputError, match=r"weights\.bits was 4 and is 3; the calibration data has changed; go on"):
            walk(stopped, resume=True, identity=changed)
        assert contents(left(stopped)) == before

    def test_tells_a_change_in_the_words_of_the_caller(self, stopped: Path) -> None:
        options: dict[str, Any] = {"resume": True, "overwrite": False, "explain": lambda old, new: ["the moon waxes"]}
        with (
            pytest.raises(InputError, match="the moon waxes"),
            WorkingDirectory.opened(stopped, {"samples": 9}, **options),
        ):
            pass

    def test_removes_what_belongs_to_no_finished_stage(self, stopped: Path) -> None:
        (left(stopped) / "stages" / "stage-00002-1.safetensors").write_text("half")
        (left(stopped) / "stages" / ".tmpXYZ").write_text("half")
        (left(stopped) / "hidden" / "00003").mkdir()
        with WorkingDirectory.opened(stopped, IDENTITY, resume=True, overwrite=False) as working:
            files = {file for stage in working.finished for file in stage.files}
            assert {f"stages/{path.name}" for path in (left(stopped) / "stages").iterdir()} == files
            assert [path.name for path in (left(stopped) / "hidden").iterdir()] == ["00002"]

    def test_without_a_file_of_a_finished_stage_is_refused(self, stopped: Path) -> None:
        path = left(stopped) / "stages" / "stage-00001-2.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(InputError, match=r"stage-00001-2\.safetensors: .* bytes in place of"):
            walk(stopped, resume=True)
        path.unlink()
        with pytest.raises(InputError, match=r"stage-00001-2\.safetensors is missing"):
            walk(stopped, resume=True)
        path.write_bytes(data)
        assert walk(stopped, resume=True) == 1

    def test_sees_stages_as_the_uninterrupted_run_does(self, tmp_path: Path) -> None:
        stage = FinishedStage(0, "b", (), 0, "", {"pair": (1, 2.5), "by": {3: None}})
        with WorkingDirectory.opened(tmp_path / "out", {}, resume=False, overwrite=False) as working:
            working.finish(stage)
            before = working.finished
        with WorkingDirectory.opened(tmp_path / "out", {}, resume=True, overwrite=False) as working:
            assert working.finished == before

    def test_begins_anew_when_the_finished_checkpoint_was_taken_away(self, tmp_path: Path) -> None:
        walk(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        assert walk(tmp_path / "out", resume=True) == STAGES


class TestBetweenTheLastRenames:
    @pytest.fixture
    def old(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """DIR of a run that was stopped when the older DIR had made room."""
        output = tmp_path / "out"
        output.mkdir()
        (output / "config.json").write_text("old")

        def stop(model: Path, target: Path, replaced: Path) -> None:
            target.rename(replaced)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(unfinished, "put_in_place", stop)
            with pytest.raises(KeyboardInterrupt):
                walk(output, overwrite=True)
        return output

    def test_resume_does_them(self, old: Path, whole: Callable[..., dict[str, bytes]]) -> None:
        assert walk(old, resume=True) == 0
        assert contents(old) == whole()

    def test_another_run_is_refused(self, old: Path) -> None:
        with pytest.raises(InputError, match="all but the last renames done"):
            walk(old)

    def test_beginning_anew_puts_the_older_one_back_first(self, old: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            walk(old, overwrite=True, behind=stop_behind(0))
        assert contents(old) == {"config.json": b"old"}


class TestHiddenStates:
    def test_only_those_behind_the_last_stage_are_kept(self, stopped: Path) -> None:
        assert [path.name for path in (left(stopped) / "hidden").iterdir()] == ["00002"]


class TestOtherRanks:
    def test_write_stages_that_the_first_one_notes(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"resume": False, "overwrite": False}
        with (
            WorkingDirectory.opened(tmp_path / "out", IDENTITY, **options) as one,
            WorkingDirectory.opened(tmp_path / "out", IDENTITY, first=False, **options) as other,
        ):
            files, size = other.write_stage(0, {"w": torch.ones(2)}, 100)
            stage = FinishedStage(0, "b", files, size, "", {})
            for working in (one, other):
                working.finish(stage)
            assert one.finished == other.finished == (stage,)
            for working in (other, one):
                working.assemble(lambda folder: runs.write_texts(one, folder))
        assert len((tmp_path / "out" / "config.json").read_text()) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_find_a_finished_checkpoint_as_the_first_one_does(self, tmp_path: Path) -> None:
        walk(tmp_path / "out")
        options: dict[str, Any] = {"resume": True, "overwrite": False, "first": False}
        with WorkingDirectory.opened(tmp_path / "out", IDENTITY, **options) as other:
            assert other.already_finished

    def test_are_told_when_they_do_not_see_the_directory(self, tmp_path: Path, stopped: Path) -> None:
        options: dict[str, Any] = {"resume": True, "overwrite": False, "first": False}
        for output, identity in ((tmp_path / "elsewhere", IDENTITY), (stopped, {})):
            with (
                pytest.raises(InputError, match="all machines share"),
                WorkingDirectory.opened(output, identity, **options),
            ):
                pass

    def test_leave_the_directory_alone_after_an_error(self, stopped: Path) -> None:
        options: dict[str, Any] = {"resume": True, "overwrite": False, "first": False}
        with pytest.raises(InputError, match="x"), WorkingDirectory.opened(stopped, IDENTITY, **options):
            raise InputError("x")
        assert walk(stopped, resume=True) == 1


FULL_IN_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


class TestLeaving:
    @pytest.mark.parametrize(
        ("error", "stays"),
        [
            (KeyboardInterrupt(), True),
            (OSError(errno.EIO, "Input/output error"), True),
            (DiskError("full"), True),
            (FULL_IN_SAFETENSORS, True),
            (MemoryError(), True),
            (RuntimeError("a process was lost"), True),
            (TypeError("a bug"), True),
            (InputError("bad data"), False),
            (NumericalError("not finite"), False),
        ],
        ids=repr,
    )
    def test_by_an_error(self, error: BaseException, stays: bool, tmp_path: Path) -> None:
        expected = DiskError if error is FULL_IN_SAFETENSORS else type(error)
        with pytest.raises(expected):
            walk(tmp_path / "out", behind=stop_behind(0, error))
        assert left(tmp_path / "out").exists() is stays
        assert not is_worth_keeping(error, found=0, finished=0)

    def test_of_the_input_soon_after_a_resume_leaves_what_was_found(self, stopped: Path) -> None:
        with (
            pytest.raises(InputError, match="other weights"),
            WorkingDirectory.opened(stopped, IDENTITY, resume=True, overwrite=False),
        ):
            raise InputError("other weights")
        assert walk(stopped, resume=True) == STAGES - 2

    def test_of_the_input_later_on_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            walk(tmp_path / "out", behind=stop_behind(0))
        with pytest.raises(NumericalError):
            walk(tmp_path / "out", resume=True, behind=stop_behind(1, NumericalError("not finite")))
        assert list(tmp_path.iterdir()) == []

    def test_with_nothing_finished_leaves_nothing(self, tmp_path: Path) -> None:
        def begin() -> None:
            with WorkingDirectory.opened(tmp_path / "out", IDENTITY, resume=False, overwrite=False) as working:
                working.hidden(0)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            begin()
        assert list(tmp_path.iterdir()) == []

    def test_behind_the_end_leaves_the_next_run_alone(self, tmp_path: Path) -> None:
        def end() -> None:
            with WorkingDirectory.opened(tmp_path / "out", IDENTITY, resume=False, overwrite=False) as working:
                working.assemble(lambda folder: runs.write_texts(working, folder))
                left(tmp_path / "out").mkdir()
                raise InputError("late")

        with pytest.raises(InputError, match="late"):
            end()
        assert left(tmp_path / "out").exists()


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _full_in_safetensors(*_: object, **__: object) -> None:
    raise FULL_IN_SAFETENSORS


class TestFullDisk:
    @pytest.mark.parametrize(
        ("place", "fail", "options"),
        [
            ("channelwise.checkpoint.shards.save_file", _full_in_safetensors, {}),
            ("channelwise.checkpoint.shards.sync_one", _full, {}),
            ("os.write", _full, {}),
            ("os.link", _full, IN_SHARDS),
            ("tests.checkpoint.runs.write_texts", _full, {}),
            ("tests.checkpoint.runs.save_file", _full_in_safetensors, {}),
        ],
    )
    def test_stops_in_one_line_and_goes_on_with_room(
        self,
        place: str,
        fail: Callable[..., None],
        options: dict[str, Any],
        tmp_path: Path,
        whole: Callable[..., dict[str, bytes]],
    ) -> None:
        with pytest.MonkeyPatch.context() as patched:

            def fills(index: int) -> None:
                if index == 1:
                    patched.setattr(place, fail)

            with pytest.raises(DiskError, match=r"no space left on the disk.*--resume"):
                walk(tmp_path / "out", behind=fills, **options)
        assert not (tmp_path / "out").exists()
        assert 0 <= walk(tmp_path / "out", resume=True, **options) <= STAGES - 2
        assert contents(tmp_path / "out") == whole(**options)

    def test_of_any_size_is_a_place_to_go_on_from(
        self, small_disk: Callable[[int], Path], whole: Callable[..., dict[str, bytes]]
    ) -> None:
        expected, told = whole(width=64), []
        for pages in range(6, 60, 3):
            output = small_disk(pages) / "out"
            try:
                walk(output, width=64)
            except DiskError as error:
                told.append(str(error))
                assert not output.exists()
                small_disk(1000)
                walk(output, resume=True, width=64)
            assert contents(output) == expected
            shutil.rmtree(output)
            assert list(output.parent.iterdir()) == []
        assert len(told) > 5
        assert set(told) == {f"no space left on the disk while writing {output}: {ADVICE}"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many pages of 4 KiB, which may grow; skips the test where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(pages: int) -> Path:
        options = f"remount,size={pages * 4}k" if folder.is_mount() else f"size={pages * 4}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("a small file system may not be mounted here")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)
