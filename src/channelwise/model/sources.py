"""Where a model lies: a directory, the hub, or the package itself."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub

from channelwise.errors import InputError

DEMO = "demo"
DOWNLOADED = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


def model_directory(name: str) -> Path:
    """The directory that holds the model of this name; a hub name is downloaded. Raises InputError if there is none."""
    if name == DEMO:
        folder = Path(str(resources.files("channelwise").joinpath("bundled")))
        if not (folder / "config.json").is_file():
            raise InputError("the bundled model is not installed: reinstall channelwise, or give another model")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{name} is not a model: it has no config.json; give a directory that transformers saved")
        return folder
    if folder.exists():
        raise InputError(f"{name} is a file, not a model directory; give the directory that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"there is no directory {name}; give a model directory, a hub name, or {DEMO}")
    return _download(name)


def _download(name: str) -> Path:
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*DOWNLOADED]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*DOWNLOADED, "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:  # the hub's errors are all of these; not found, gated, offline
        raise InputError(f"neither a directory nor a model on the hub: {name} ({one_line(error)})") from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} on the hub is not a model for transformers: it has no config.json")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({one_line(error)}): fetch the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: fetch the model again")
    return content


def one_line(error: Exception) -> str:
    """An error's message on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
