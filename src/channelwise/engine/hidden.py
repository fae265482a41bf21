"""The hidden states of the calibration samples at one block boundary: in memory up to a budget, on disk beyond it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from channelwise.errors import InputError

Folder = Callable[[int], Path | None]
"""From a boundary's number to the folder that its hidden states outlive the run in, or None if they need not."""

NAME = "hidden"


def nowhere(boundary: int) -> Path | None:
    """For runs that nothing has to outlive."""
    return None


def fitting(budget: int | None, device: torch.device) -> int | None:
    """The budget of hidden states that stay on a device: on a GPU at most half of what is free there now."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return budget
    free = torch.cuda.mem_get_info(device)[0] // 2
    return free if budget is None else min(budget, free)


@dataclass
class HiddenStates:
    """One tensor [batch, tokens, channels] for each sample; boundary k lies before block k.

    budget: bytes that stay in memory, None for all. What does not fit is in a file that is read each time. Where a run
    has to survive, every state is in a file, too. device: where states are given, and stay if they do.
    """

    budget: int | None = None
    folder: Folder = nowhere
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    boundary: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)
    _kept: dict[int, torch.Tensor] = field(default_factory=dict)
    _files: dict[int, Path] = field(default_factory=dict)
    _spilled: list[TemporaryDirectory[str]] = field(default_factory=list)

    def advance(self) -> None:
        """What is put from now on belongs to the next boundary."""
        self.boundary += 1

    def __getitem__(self, sample: int) -> torch.Tensor:
        """The state that was put last. Raises KeyError for an unknown sample, InputError for a damaged file."""
        kept = self._kept.get(sample)
        return self._read(self._files[sample]) if kept is None else kept

    def __setitem__(self, sample: int, state: torch.Tensor) -> None:
        """Keeps a state of the current boundary."""
        self._kept.pop(sample, None)
        self._sizes[sample] = _bytes(state)
        fits = self.budget is None or self.bytes_in_memory + _bytes(state) <= self.budget
        lasting = self.folder(self.boundary)
        if fits:
            self._kept[sample] = state
        earlier = self._files.pop(sample, None)
        if lasting is not None or not fits:
            path = (lasting or self._temporary()) / f"{sample:06d}-{self.boundary}.safetensors"
            _write(state, path)
            self._files[sample] = path
        if earlier is not None and earlier != self._files.get(sample) and self._is_spilled(earlier):
            earlier.unlink()

    @property
    def bytes_in_memory(self) -> int:
        """Of the states that are not only in files."""
        return sum(map(_bytes, self._kept.values()))

    @property
    def total_bytes(self) -> int:
        """Of all states."""
        return sum(self._sizes.values())

    def restore(self, boundary: int, samples: Iterable[int], folder_of: Folder | None = None) -> None:
        """Goes on at a boundary that an earlier run reached. Raises InputError for a file that is not there.

        folder_of: where the states lie, if that is not where these are kept.
        """
        folder = (folder_of or self.folder)(boundary)
        if folder is None:
            raise ValueError("nothing outlived an earlier run")
        self._kept.clear()
        self.boundary = boundary
        for sample in samples:
            path = folder / f"{sample:06d}-{boundary}.safetensors"
            state = self._read(path)
            self._files[sample], self._sizes[sample] = path, _bytes(state)
            if self.budget is None or self.bytes_in_memory + _bytes(state) <= self.budget:
                self._kept[sample] = state

    def _read(self, path: Path) -> torch.Tensor:
        try:
            # A copy: what is mapped would count as memory for as long as it is held, and hold the file.
            return load_file(path)[NAME].clone().to(self.device)
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"{path} is missing or damaged, so the run cannot go on from there: start again with --overwrite"
            ) from error

    def _is_spilled(self, path: Path) -> bool:
        return bool(self._spilled) and path.is_relative_to(self._spilled[0].name)

    def _temporary(self) -> Path:
        if not self._spilled:
            self._spilled.append(TemporaryDirectory(prefix="channelwise-", ignore_cleanup_errors=True))
        return Path(self._spilled[0].name)


def _bytes(state: torch.Tensor) -> int:
    return state.numel() * state.element_size()


def _write(state: torch.Tensor, path: Path) -> None:
    """In a file of another name first: a file of this name is whole. The keeper makes it last."""
    partial = path.with_suffix(".partial")
    save_file({NAME: state.detach().cpu().contiguous()}, partial)
    partial.rename(path)
