"""From a checkpoint's directory to an exported one: opened, converted, written whole or not at all."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from channelwise.checkpoint.exporting import Exported, to_compressed_tensors
from channelwise.checkpoint.exporting_card import export_card
from channelwise.checkpoint.exporting_twin import plain_config
from channelwise.checkpoint.loader import is_checkpoint, load_checkpoint
from channelwise.checkpoint.shards import write_shards
from channelwise.checkpoint.writer import RECORD_FILE, check_output, copy_extra_files, whole_directory, write_companions
from channelwise.errors import InputError

ExportFormat = Literal["compressed-tensors", "fp"]


@dataclass(frozen=True)
class ExportResult:
    """What was written: bytes of the weight files, and what a user should know of it."""

    output: Path
    format: ExportFormat
    bytes: int
    notes: tuple[str, ...]


def export_checkpoint(
    directory: str | Path,
    *,
    format: ExportFormat,
    output: str | Path,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Writes a checkpoint for other programs.

    directory: what `quantize` wrote. format: `compressed-tensors`, the same quantized model as transformers with
    compressed-tensors loads it; or `fp`, the model `source` that it was made from, in floating point with the
    checkpoint's transforms folded in. Raises InputError, and writes nothing, for what the format cannot hold.
    """
    folder, target = Path(directory), Path(output)
    _check(folder, format, source)
    check_output(target, overwrite)
    if folder.resolve() == target.resolve():
        raise InputError(f"--output is {directory} itself; choose another directory")
    model, tokenizer = load_checkpoint(folder)
    recipe = dict(_quantization(folder).get("recipe") or {})
    exported = _floating(model, source) if format == "fp" else _compressed(model, recipe, directory)
    with whole_directory(target, overwrite) as partial:
        written = write_shards(exported.tensors, partial)
        write_companions(exported.model, tokenizer, partial)
        copy_extra_files(str(folder), partial)
        if (folder / RECORD_FILE).is_file():
            shutil.copyfile(folder / RECORD_FILE, partial / RECORD_FILE)
        card = export_card(type(exported.model).__name__, recipe, format, exported.notes, tokenizer is not None)
        (partial / "README.md").write_text(card, encoding="utf-8")
        # Last: what has no config.json does not load, should the process be killed before.
        _write_config(exported, partial)
    return ExportResult(target, format, written, exported.notes)


def _check(folder: Path, format: str, source: str | Path | None) -> None:
    if format not in ("compressed-tensors", "fp"):
        raise InputError(f"there is no format {format!r}; give compressed-tensors or fp")
    if not is_checkpoint(folder):
        raise InputError(f"{folder} is not a directory that `channelwise quantize` wrote; quantize the model first")
    if format == "fp" and source is None:
        raise InputError("fp folds the checkpoint's transforms into the original's weights; give it with --source")
    if format != "fp" and source is not None:
        raise InputError("--source goes with --format fp; compressed-tensors needs the checkpoint alone")
    if format != "fp":
        need_compressed_tensors()


def need_compressed_tensors() -> None:
    """Raises InputError if the library is not installed."""
    try:
        import compressed_tensors  # noqa: F401 — whether it is there
    except ImportError as error:
        raise InputError('compressed-tensors is not installed; pip install "channelwise[export]"') from error


def _compressed(model: Any, recipe: dict[str, Any], directory: str | Path) -> Exported:
    try:
        return to_compressed_tensors(model, recipe)
    except InputError as error:
        raise InputError(f"{directory} does not fit compressed-tensors: {error}") from error


def _floating(model: Any, source: str | Path | None) -> Exported:
    from channelwise.checkpoint.floating_point import to_floating_point
    from channelwise.model.loading import load_model

    original, _ = load_model(str(source), dtype=torch.float32)
    return to_floating_point(original, model)


def _quantization(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization: dict[str, Any] = config["quantization_config"]
    return quantization


def _write_config(exported: Exported, folder: Path) -> None:
    config = plain_config(exported.model)
    config.dtype = torch.float32
    if exported.quantization is not None:
        config.quantization_config = exported.quantization
    config.save_pretrained(folder)
