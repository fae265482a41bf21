"""Writing a checkpoint: into a directory beside the wanted one, which takes its place in the end or never."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from channelwise.checkpoint.card import CardFacts, model_card
from channelwise.checkpoint.counting import Counted, counted
from channelwise.checkpoint.disk import disk_errors_told, sync_one
from channelwise.checkpoint.disk import sync as _sync
from channelwise.checkpoint.format import CheckpointFormat, to_config
from channelwise.checkpoint.shards import checkpoint_tensors, write_shards
from channelwise.errors import InputError
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR_FOLDERS = ("additional_chat_templates/*.jinja", "*tokenizer/*.json", "*tokenizer/*.txt", "*tokenizer/*.model")
"""Chat templates, and tokenizers that a processor of several parts keeps in folders of their own."""
SENTENCE_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""What sentence-transformers needs beside the model."""

RECORD_FILE = "quantization_record.json"
"""What was chosen at every site and layer, and what it lost: formats, directions, thresholds, losses."""

RUN = "run"
"""The record's entry with the digest of all that the run depended on."""


def check_output(directory: Path, overwrite: bool) -> None:
    """Raises InputError if a checkpoint cannot be written to `directory`; writes nothing."""
    target = Path(directory).resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{directory} is a file; --output names a directory")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise InputError(f"{directory} exists and is not empty; choose another --output or give --overwrite")
        if not (target / "config.json").is_file():
            raise InputError(f"{directory} holds no model, so --overwrite does not remove it; choose another --output")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, so {directory} cannot be made; choose another --output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{parent} is not writable; choose another --output")


def save_checkpoint(
    model: Any,
    tokenizer: Any,
    directory: Path,
    *,
    recipe: dict[str, Any],
    source_name: str,
    record: dict[str, Any],
    overwrite: bool,
) -> None:
    """Writes a transformers model with quantized layers so that `load_checkpoint` and transformers load it.

    source_name: directory or hub name of the original, for the card and its processor files. record: what was
    chosen, JSON-able; it is written as it is into quantization_record.json.
    The directory appears at once and whole; whatever goes wrong, or an interruption, leaves what was there before.
    Raises InputError as `check_output` does, and when the disk is full or does not take the files.
    """
    with whole_directory(directory, overwrite) as partial:
        write_shards(checkpoint_tensors(model), partial)
        write_checkpoint_texts(
            model,
            tokenizer,
            partial,
            format=format_of(model, recipe),
            sizes=counted(model.modules()),
            source_name=source_name,
            record=record,
        )


def write_checkpoint_texts(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    format: CheckpointFormat,
    sizes: Counted,
    source_name: str,
    record: dict[str, Any],
    run: str | None = None,
) -> None:
    """All of a checkpoint but its weight files, which are in the folder already; config.json last.

    model: a transformers model; its weights are not read, so they may be on the meta device. format: what is quantized
    and how, with the recipe. sizes: of the whole model. source_name, record: as for `save_checkpoint`. run: digest of
    what the run depended on, for `recorded_run`.
    """
    _write_texts(model, tokenizer, folder, format.recipe, source_name, sizes)
    told = record if run is None else {**record, RUN: run}
    (folder / RECORD_FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    copy_extra_files(source_name, folder)
    # Last: what has no config.json does not load, should the process be killed before.
    _write_config(model, folder, format)


def recorded_run(directory: Path) -> str | None:
    """The digest of what the run that wrote this checkpoint depended on; None if it is not told, or no checkpoint."""
    try:
        record = json.loads((Path(directory) / RECORD_FILE).read_text(encoding="utf-8"))
        run = record.get(RUN)
    except (OSError, ValueError, AttributeError):
        return None
    return run if isinstance(run, str) and (Path(directory) / "config.json").is_file() else None


@contextmanager
def whole_directory(directory: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory to write into, which takes the place of `directory` at the end or never.

    Raises InputError as `check_output` does, and when the disk is full or does not take the files.
    """
    check_output(directory, overwrite)
    elsewhere = "choose another --output"
    told = disk_errors_told(directory, if_full=f"free some space or {elsewhere}", otherwise=elsewhere)
    with told, _replacing(Path(directory).resolve()) as partial:
        yield partial
        _sync(partial)


def write_companions(model: Any, tokenizer: Any, folder: Path) -> None:
    """The tokenizer, and the settings of `generate`, beside the weights, where the model has them."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None and model.can_generate():
        model.generation_config.save_pretrained(folder)


def format_of(model: torch.nn.Module, recipe: dict[str, Any]) -> CheckpointFormat:
    """What config.json has to say about this model."""
    from channelwise.model.experts import UnfusedExperts

    modules = dict(model.named_modules(remove_duplicate=False))
    schemes = {name: module.scheme for name, module in modules.items() if isinstance(module, QuantizedLinear)}
    experts = tuple(name for name, module in modules.items() if isinstance(module, UnfusedExperts))
    embeddings = {name: module.scheme for name, module in modules.items() if isinstance(module, QuantizedEmbedding)}
    return CheckpointFormat(schemes, recipe, experts, recipe.get("attention_bits"), embeddings)


def _write_config(model: Any, folder: Path, format: CheckpointFormat) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.quantization_config = to_config(format)
    config.save_pretrained(folder)


def _write_texts(
    model: Any,
    tokenizer: Any,
    folder: Path,
    recipe: dict[str, Any],
    source_name: str,
    sizes: Counted,
) -> None:
    facts = CardFacts(
        source=source_name,
        architecture=type(model).__name__,
        recipe=recipe,
        linears=sizes.linears,
        bits_per_weight=sizes.bits_per_weight,
        embeddings=sizes.embeddings,
        bits_per_embedding=sizes.bits_per_embedding,
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        has_tokenizer=tokenizer is not None,
    )
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    write_companions(model, tokenizer, folder)


def copy_extra_files(source_name: str, folder: Path) -> None:
    """The files of processors and of sentence-transformers, from the directory or hub name of the original."""
    for name in (*PROCESSOR_FILES, *SENTENCE_FILES, *_in_folders(source_name)):
        found = _source_file(source_name, name)
        if found is not None and not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, folder / name)


def _in_folders(source_name: str) -> list[str]:
    """The files in a processor's folders, relative to the model's."""
    config = _source_file(source_name, "config.json")
    if config is None:
        return []
    found = [path for pattern in PROCESSOR_FOLDERS for path in config.parent.glob(pattern)]
    return sorted(path.relative_to(config.parent).as_posix() for path in found)


def _source_file(source_name: str, name: str) -> Path | None:
    """A file of the original model: in its directory, or in the hub's cache; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source_name).is_dir():
        path = Path(source_name) / name
        return path if path.is_file() else None
    try:
        cached = try_to_load_from_cache(source_name, name)
    except ValueError:
        return None
    return Path(cached) if isinstance(cached, str) else None


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new directory beside `target` that takes its place at the end, or is removed if anything is raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    sync_one(target.parent)
