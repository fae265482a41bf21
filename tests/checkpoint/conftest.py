"""Checkpoints of tiny models, without network and on one thread, as waiting for a second takes longer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise.checkpoint.plugin import register
from channelwise.checkpoint.writer import save_checkpoint
from tests.checkpoint.tiny import Save


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded_and_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    register()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a model under tmp_path with a recipe of little content."""

    def saved(model: Any, name: str = "out", overwrite: bool = False, **more: Any) -> Path:
        settings: dict[str, Any] = {"recipe": {"name": "by-hand"}, "source_name": "tiny", "record": {}, **more}
        save_checkpoint(model, None, tmp_path / name, overwrite=overwrite, **settings)
        return tmp_path / name

    return saved
