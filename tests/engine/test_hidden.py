"""Hidden states at a block boundary: where they are must not change what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from channelwise.engine.hidden import HiddenStates, fitting
from channelwise.errors import InputError

SAMPLES = 5
BYTES = 2 * 3 * 4 * 4
"""Of one state [2, 3, 4] in float32."""
BUDGETS = [None, 0, BYTES, 2 * BYTES + 1, SAMPLES * BYTES]


def state(sample: int, boundary: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(100 * boundary + sample)).to(dtype)


def filled(hidden: HiddenStates, boundaries: int = 1) -> HiddenStates:
    """With the states of so many boundaries put into it, one after the other, each read before its follower comes."""
    for boundary in range(boundaries):
        for sample in range(SAMPLES):
            if boundary:
                assert torch.equal(hidden[sample], state(sample, boundary - 1))
            hidden[sample] = state(sample, boundary)
        if boundary < boundaries - 1:
            hidden.advance()
    return hidden


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def folders(root: Path) -> Callable[[int], Path]:
    """A folder for each boundary."""

    def of(boundary: int) -> Path:
        folder = root / str(boundary)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return of


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("lasting", [False, True])
def test_what_was_put_last_comes_back_whatever_the_budget(
    budget: int | None, lasting: bool, tmp_path: Path, temporary: Path
) -> None:
    hidden = filled(HiddenStates(budget, folders(tmp_path / "kept")) if lasting else HiddenStates(budget), 3)
    assert all(torch.equal(hidden[sample], state(sample, 2)) for sample in range(SAMPLES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_file_keeps_the_dtype(dtype: torch.dtype) -> None:
    hidden = HiddenStates(budget=0)
    hidden[0] = state(0, dtype=dtype)
    assert hidden[0].dtype == dtype
    assert torch.equal(hidden[0], state(0, dtype=dtype))


def test_a_view_is_kept_as_what_it_shows() -> None:
    hidden = HiddenStates(budget=0)
    hidden[0] = state(0).transpose(1, 2)
    assert torch.equal(hidden[0], state(0).transpose(1, 2))


def test_the_budget_is_not_exceeded(temporary: Path) -> None:
    hidden = filled(HiddenStates(2 * BYTES + 1), 2)
    assert hidden.bytes_in_memory == 2 * BYTES
    assert hidden.total_bytes == SAMPLES * BYTES
    assert len(files_below(temporary)) == SAMPLES - 2


def test_without_a_budget_nothing_is_written(temporary: Path) -> None:
    hidden = filled(HiddenStates(), 2)
    assert hidden.bytes_in_memory == SAMPLES * BYTES
    assert not files_below(temporary)


def test_files_that_nothing_has_to_outlive_go_with_their_followers_and_with_the_states(temporary: Path) -> None:
    hidden = filled(HiddenStates(0), 3)
    assert len(files_below(temporary)) == SAMPLES
    del hidden
    assert not files_below(temporary)


def test_putting_a_state_again_at_the_same_boundary_replaces_it() -> None:
    hidden = HiddenStates(budget=0)
    hidden[0] = state(0)
    hidden[0] = state(1)
    assert torch.equal(hidden[0], state(1))


def test_an_unknown_sample_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        HiddenStates()[0]


class TestRestored:
    @pytest.mark.parametrize("before", BUDGETS)
    @pytest.mark.parametrize("after", BUDGETS)
    def test_states_of_any_boundary_come_back(self, before: int | None, after: int | None, tmp_path: Path) -> None:
        filled(HiddenStates(before, folders(tmp_path)), 3)
        hidden = HiddenStates(after, folders(tmp_path))
        for boundary in (2, 1):
            hidden.restore(boundary, range(SAMPLES))
            assert hidden.boundary == boundary
            assert hidden.total_bytes == SAMPLES * BYTES
            assert hidden.bytes_in_memory <= (SAMPLES * BYTES if after is None else after)
            assert all(torch.equal(hidden[sample], state(sample, boundary)) for sample in range(SAMPLES))

    def test_a_rank_may_take_any_samples(self, tmp_path: Path) -> None:
        filled(HiddenStates(folder=folders(tmp_path)))
        hidden = HiddenStates(folder=folders(tmp_path))
        hidden.restore(0, [3, 4])
        assert torch.equal(hidden[4], state(4))
        with pytest.raises(KeyError):
            hidden[0]

    def test_states_may_come_from_where_others_keep_them(self, tmp_path: Path) -> None:
        filled(HiddenStates(folder=folders(tmp_path)))
        hidden = HiddenStates()
        hidden.restore(0, [1], folders(tmp_path))
        assert torch.equal(hidden[1], state(1))

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
    def test_a_missing_or_damaged_file_is_named(self, damage: Callable[[Path], object], tmp_path: Path) -> None:
        filled(HiddenStates(folder=folders(tmp_path)))
        [spoiled] = (tmp_path / "0").glob("*2-0.safetensors")
        damage(spoiled)
        with pytest.raises(InputError, match=f"{spoiled.name} is missing or damaged.*--overwrite"):
            HiddenStates(folder=folders(tmp_path)).restore(0, range(SAMPLES))

    def test_nothing_comes_back_where_nothing_was_kept(self) -> None:
        with pytest.raises(ValueError, match="nothing outlived"):
            HiddenStates().restore(0, [0])


@pytest.mark.parametrize(("budget", "kept"), [(None, 500), (400, 400), (600, 500)])
def test_on_a_gpu_states_take_at_most_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, budget: int | None, kept: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 2000))
    assert fitting(budget, torch.device("cuda")) == kept
    assert fitting(budget, torch.device("cpu")) == budget


def test_a_file_of_a_state_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("channelwise.engine.hidden.save_file", interrupted)
    hidden = HiddenStates(folder=folders(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        hidden[0] = state(0)
    assert files_below(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
