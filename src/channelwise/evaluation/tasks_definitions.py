"""The harness's definitions of its tasks, with documents from the hub, as they say, or from local files."""

import contextlib
import difflib
import functools
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channelwise.errors import InputError
from channelwise.evaluation.tasks_documents import Document, read_documents

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_NEAREST = 3
"""How many known names an error suggests."""


@dataclass(frozen=True)
class LocalFiles:
    """A folder with NAME.jsonl for each task, and NAME.SPLIT.jsonl for examples that come from another split.

    fewshot: examples before each question; None: as many as the task says.
    """

    folder: Path
    fewshot: int | None = None

    def of(self, name: str) -> dict[str, Path]:
        """Split → file, the split that is evaluated first. Raises InputError for a task that has no such files."""
        definition = _definition(name)
        if "class" in definition or "custom_dataset" in definition:
            raise InputError(f"{name} makes its own documents; leave --task-data out")
        evaluated = definition.get("test_split") or definition.get("validation_split")
        if evaluated is None:
            raise InputError(f"{name} has no documents to evaluate in lm-evaluation-harness; take another task")
        files = {evaluated: self.folder / f"{name}.jsonl"}
        if self.examples(definition):
            split = _examples_split(definition, evaluated)
            files.setdefault(split, self.folder / f"{name}.{split}.jsonl")
        return files

    def examples(self, definition: Mapping[str, Any]) -> int:
        """Examples before each question that come from documents; the harness lets a task's own 0 stand."""
        config = _examples_config(definition)
        if config.get("samples") is not None and not config.get("split"):
            return 0
        own = definition.get("num_fewshot")
        return int(own or 0) if self.fewshot is None or own == 0 else self.fewshot


@functools.cache
def task_index() -> Any:
    """The harness's TaskManager. It reads thousands of files, which takes seconds; they stay the same."""
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        return TaskManager()


def check_names(names: Sequence[str], local: LocalFiles | None) -> None:
    """Raises InputError for a name that the harness does not know; with local files for a group or a missing file."""
    index = task_index()
    for name in names:
        if name not in index.task_index:
            near = difflib.get_close_matches(name, index.all_tasks, _NEAREST)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise InputError(f"lm-evaluation-harness has no task {name!r}; {hint}")
        if local is None:
            continue
        if name not in index.all_subtasks:
            raise InputError(f"{name} is a group of tasks; with --task-data name single tasks")
        for split, path in local.of(name).items():
            if not path.is_file():
                raise InputError(f"{path} is missing; --task-data needs it for the {split} documents of {name}")


def load_tasks(names: Sequence[str], local: LocalFiles | None) -> list[Any]:
    """The harness's tasks and groups of tasks with their documents, as its simple_evaluate takes them.

    Raises InputError for documents that are not there or do not fit the task's definition, for a task that is asked
    twice, for one that runs code written by the model, and for one that shows images or plays sound.
    """
    found: list[Any] = []
    with quiet_harness():
        for name in names:
            found += _from_hub(name) if local is None else [_from_files(name, local)]
    try:
        single = task_index().load(found)["tasks"]
    except ValueError as error:
        raise InputError(f"a task is asked twice ({_one_line(error)}); name it or its group") from error
    for name, task in single.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(f"{name} runs code that the model writes; run it with lm_eval, in a sandbox")
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"{name} shows images or plays sound; --tasks takes tasks of text")
    return found


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """The harness prints to standard output, draws bars and warns of what is meant; as before afterwards."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _from_hub(name: str) -> list[Any]:
    """The task or the group of this name, or all tasks of a tag."""
    try:
        loaded = task_index().load([name])
    except Exception as error:  # the libraries raise many kinds: offline, gated, missing, a package that is missing
        raise InputError(
            f"the documents of {name} cannot be loaded ({_one_line(error)}); "
            f"--task-data FOLDER reads them from FOLDER/{name}.jsonl"
        ) from error
    group = loaded["groups"].get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


def _from_files(name: str, local: LocalFiles) -> Any:
    """The harness's definition of a task, and nothing of it changed but where the documents come from."""
    from datasets import Dataset

    files = local.of(name)
    documents = {split: read_documents(path, name) for split, path in files.items()}
    definition = _definition(name)

    def local_documents(**_: Any) -> dict[str, Any]:
        return {split: Dataset.from_list(part) for split, part in documents.items()}

    changed: dict[str, Any] = {key: None for key in _SPLITS if definition.get(key) not in documents}
    if not local.examples(definition):
        changed["fewshot_config"] = None
    changed |= {"task": name, "custom_dataset": local_documents, "dataset_kwargs": None}
    try:
        # In the harness, only a group may change parts of a definition.
        loaded = task_index().load([{"group": "local", "task": [changed]}])
    except Exception as error:  # templates, functions and libraries of any task
        raise InputError(_unfit(name, next(iter(files.values())), documents, error)) from error
    return loaded["tasks"][name]


def _unfit(name: str, path: Path, documents: Mapping[str, Sequence[Document]], error: Exception) -> str:
    fields = ", ".join(next(iter(documents.values()))[0])
    return (
        f"{path} does not fit the task {name} ({_one_line(error)}): its documents have the fields {fields}; "
        "give them those of the task's data set on the hub"
    )


def _definition(name: str) -> Mapping[str, Any]:
    """The task's YAML, its functions not resolved."""
    definition: Mapping[str, Any] = task_index().task_index[name].cfg
    return definition


def _examples_split(definition: Mapping[str, Any], evaluated: str) -> str:
    """Where the harness takes examples from."""
    named = _examples_config(definition).get("split") or definition.get("fewshot_split")
    return str(named or definition.get("training_split") or definition.get("validation_split") or evaluated)


def _examples_config(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    config = definition.get("fewshot_config")
    return config if isinstance(config, Mapping) else {}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
