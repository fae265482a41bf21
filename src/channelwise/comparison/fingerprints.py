"""What a run's results depend on, as short digests: equal fingerprints, equal runs."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from channelwise.evaluation.classification import IMAGES_AT_ONCE
from channelwise.evaluation.measure import Questions
from channelwise.methods.imported import is_import_path, method_digest
from channelwise.model.batches import Batch
from channelwise.model.pixels import Pixels
from channelwise.recipe import Recipe
from channelwise.runtime.cpu.library import level

WITHOUT_EFFECT = ("cli", "report", "serving")
"""Rooms of the package that only take orders and show results; a change of any other measures anew."""

NOT_DONE = {"name", "summary", "paper", "calibration"}
"""What a recipe says that changes nothing: its calibration set is digested as it is read."""

UNMEANT = ("_name_or_path", "transformers_version", "_commit_hash")
"""Entries of a model's config that say where it came from."""


def fingerprint(parts: Mapping[str, Any]) -> str:
    """One digest of JSON-able parts, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def model_digest(model: nn.Module) -> str:
    """Of a model's class, config, and all its parameters and buffers with names, shapes and dtypes."""
    config: Any = getattr(model, "config", None)
    entries = config.to_dict() if hasattr(config, "to_dict") else {}
    told = {name: value for name, value in entries.items() if name not in UNMEANT}
    told["attention"] = getattr(config, "_attn_implementation", None)
    digest = hashlib.blake2b(f"{type(model).__name__} {json.dumps(told, sort_keys=True, default=str)}".encode())
    for kind in (model.named_parameters(), model.named_buffers()):
        for name, tensor in kind:
            _add(digest, name, tensor)
    return digest.hexdigest()


def batches_digest(batches: Iterable[Batch]) -> str:
    """Of a model's inputs, in their order."""
    digest = hashlib.blake2b()
    for batch in batches:
        for name in sorted(batch):
            _add(digest, name, batch[name])
    return digest.hexdigest()


def questions_digest(questions: Questions) -> str:
    """Of all that is asked: tokens, windows, labels, pixel values. What the original answers follows from the model."""
    digest = hashlib.blake2b(json.dumps([questions.length, questions.labels]).encode())
    if questions.stream is not None:
        _add(digest, "stream", questions.stream)
    _add_all(digest, "sentence", questions.sentences or ())
    examples = questions.examples
    if examples is not None:
        _add(digest, f"labels of {examples.count}", examples.labels)
        _add_all(digest, "example", _tensors(examples.inputs))
    return digest.hexdigest()


def recipe_content(recipe: Recipe) -> dict[str, Any]:
    """What a recipe does to a model, without what it is called; of methods from outside the package also their file."""
    sites = [site for site in (recipe.stream, recipe.inner, recipe.head) if site is not None]
    paths = {name for site in sites if is_import_path(name := str(site.method.get("name")))}
    content = recipe.model_dump(mode="json", exclude=NOT_DONE)
    return {**content, "imported": {path: method_digest(path) for path in paths}}


def surroundings(device: torch.device) -> dict[str, Any]:
    """What else makes results and times: versions, the package's own source, the processor, its kernels, threads."""
    return {
        "versions": versions(),
        "source": source_digest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": processor_name(),
        "kernels": level(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Of the package and of what computes for it."""
    return {
        "channelwise": _own_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _own_version() -> str:
    try:
        return version("channelwise")
    except PackageNotFoundError:
        return "not installed"


@cache
def source_digest(package: Path = Path(__file__).parents[1]) -> str:
    """Of the package's Python files and compiled kernels, but for the rooms `WITHOUT_EFFECT`."""
    digest = hashlib.blake2b()
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package)
        if path.suffix in (".py", ".so") and inside.parts[0] not in WITHOUT_EFFECT:
            digest.update(f"{inside.as_posix()} {path.stat().st_size} ".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _tensors(inputs: Sequence[torch.Tensor] | Pixels) -> Iterable[torch.Tensor]:
    return inputs.batches(IMAGES_AT_ONCE) if isinstance(inputs, Pixels) else inputs


def _add_all(digest: Any, name: str, tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        _add(digest, name, tensor)


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """A tensor's name, shape, dtype and bytes; of a large one only a part is copied at a time."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().reshape(-1)
    for part in flat.split(2**24):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
