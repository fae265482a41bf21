"""Tasks of lm-evaluation-harness: its definitions, its prompts, its scores, on a model that is loaded already."""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise.errors import InputError, NumericalError
from channelwise.evaluation.tasks_definitions import (
    LocalFiles,
    check_names,
    load_tasks,
    quiet_harness,
    task_index,
)
from channelwise.model.batches import is_causal

Report = Callable[[str, int, int], None]
TaskResults = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class AskedTasks:
    """Tasks that the harness knows, and how to run them.

    local: the files that the documents come from; None: the hub, or its cache. limit: documents of each task; None:
    all. fewshot: examples before each question; None: as many as the task says. batch: rows that run through the model
    together; None: as many as make a good batch.
    """

    names: tuple[str, ...]
    local: LocalFiles | None = None
    limit: int | None = None
    fewshot: int | None = None
    batch: int | None = None


@dataclass(frozen=True)
class TaskScores:
    """results: of each task its metrics, see `run_tasks`. seconds: wall time."""

    results: TaskResults
    seconds: float


def ask_tasks(
    names: str | Sequence[str],
    folder: str | Path | None = None,
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    batch: int | None = None,
) -> AskedTasks:
    """names: a list, or one string with commas. folder: of local files NAME.jsonl. For the others see AskedTasks.

    Raises InputError where the harness is not installed, does not know a name, or a local file is missing.
    """
    listed = names.split(",") if isinstance(names, str) else list(names)
    chosen = tuple(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not chosen:
        raise InputError("no task to run; name tasks of lm-evaluation-harness, as in --tasks piqa,arc_easy")
    for option, value, least in (("--limit", limit, 1), ("--fewshot", fewshot, 0), ("--batch", batch, 1)):
        if value is not None and value < least:
            raise InputError(f"{option} {value} is too few; give {option} {least} or more")
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError('--tasks needs lm-evaluation-harness; install it with pip install "channelwise[eval]"')
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"no such folder: {folder}; --task-data names a folder with a file NAME.jsonl for each task")
    local = None if folder is None else LocalFiles(Path(folder), fewshot)
    check_names(chosen, local)
    return AskedTasks(chosen, local, limit, fewshot, batch)


def prepare_tasks(asked: AskedTasks, model: torch.nn.Module, tokenizer: Any) -> list[Any]:
    """The harness's tasks with their documents.

    Raises InputError for a model that does not generate text or has no tokenizer, for documents that are not there or
    do not fit the task, and for tasks that run code written by the model or show images.
    """
    if not is_causal(model):
        raise InputError(f"{type(model).__name__} is no causal language model, so it cannot answer --tasks")
    if tokenizer is None:
        raise InputError("the model has no tokenizer to read the tasks with; put its tokenizer beside it")
    return load_tasks(asked.names, asked.local)


def run_tasks(
    model: torch.nn.Module, tokenizer: Any, asked: AskedTasks, tasks: Sequence[Any], report: Report | None = None
) -> TaskScores:
    """What the harness's simple_evaluate gives for each of the prepared tasks.

    Of a task: its metrics as the harness names them (acc, acc_norm, perplexity, …), and NAME_stderr, the standard
    error, None where there is none; behind a filter other than "none" a metric is NAME,FILTER. documents: how many were
    scored. cut: how many of them were longer than the model's window and lost their beginning. Raises NumericalError
    where logits or a metric are not finite.
    """
    from lm_eval import simple_evaluate

    from channelwise.evaluation.tasks_model import LoadedModel

    started = time.perf_counter()
    with quiet_harness():
        language_model = LoadedModel(model, tokenizer, asked.batch, report or (lambda label, done, total: None))
        found = simple_evaluate(
            language_model,
            tasks=list(tasks),
            num_fewshot=asked.fewshot,
            limit=asked.limit,
            log_samples=False,
            task_manager=task_index(),
        )
    results = {name: _figures(name, entry, language_model.cut) for name, entry in found["results"].items()}
    return TaskScores(results, time.perf_counter() - started)


def _figures(name: str, entry: Mapping[str, Any], cut: set[tuple[str, int]]) -> dict[str, Any]:
    """One task's metrics, without the name of the filter where there is none."""
    figures: dict[str, Any] = {}
    for key, value in entry.items():
        if "," in key:
            figures[key.removesuffix(",none")] = float(value) if isinstance(value, int | float) else None
    unfit = [metric for metric, value in figures.items() if value is not None and not math.isfinite(value)]
    if unfit:
        raise NumericalError(f"{name}: its {unfit[0]} is not finite; the model's weights are damaged")
    return {**figures, "documents": entry["sample_len"], "cut": sum(task == name for task, _ in cut)}
