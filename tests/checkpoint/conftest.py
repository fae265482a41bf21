"""Checkpoints of tiny models, and no network."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from channelwise.checkpoint.plugin import register
from channelwise.checkpoint.writer import save_checkpoint

Save = Callable[..., Path]


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
