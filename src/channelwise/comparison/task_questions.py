"""Tasks of lm-evaluation-harness as a comparison asks them: the same documents of every model."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from channelwise.engine.walk import Progress
from channelwise.errors import InputError
from channelwise.evaluation.tasks import AskedTasks, TaskScores, ask_tasks, prepare_tasks, run_tasks
from channelwise.evaluation.tasks_definitions import task_index


@dataclass(frozen=True)
class TaskOptions:
    """What `compare` is told of tasks; as in `api.evaluate`."""

    tasks: str | Sequence[str] | None = None
    task_data: str | Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    batch: int | None = None

    def asked(self) -> AskedTasks | None:
        """None where no tasks are named. Raises InputError as `ask_tasks`, and for options without tasks."""
        options = {"limit": self.limit, "fewshot": self.fewshot, "batch": self.batch}
        if self.tasks is not None:
            return ask_tasks(self.tasks, self.task_data, **options)
        if self.task_data is not None or any(value is not None for value in options.values()):
            raise InputError("--task-data, --limit, --fewshot and --batch go with --tasks; name the tasks")
        return None


@dataclass(frozen=True, eq=False)
class TaskQuestions:
    """Tasks with their documents, to be asked of any model with this tokenizer."""

    asked: AskedTasks
    prepared: list[Any]
    tokenizer: Any

    @classmethod
    def of(cls, asked: AskedTasks | None, model: nn.Module, tokenizer: Any) -> "TaskQuestions | None":
        """None for None. Raises InputError as `prepare_tasks`."""
        return None if asked is None else cls(asked, prepare_tasks(asked, model, tokenizer), tokenizer)

    def scores(self, model: nn.Module, progress: Progress) -> TaskScores:
        """This model's. Raises NumericalError as `run_tasks`."""
        return run_tasks(model, self.tokenizer, self.asked, self.prepared, progress)

    def digest(self) -> str:
        """Of the harness, the options, the documents with their examples, and the tokenizer."""
        told = {**asdict(self.asked), "local": None, "harness": version("lm-eval")}
        digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode())
        digest.update(_tokenizer_text(self.tokenizer).encode())
        for name, task in sorted(task_index().load(self.prepared)["tasks"].items()):
            digest.update(name.encode())
            _add(digest, task.eval_docs)
            if (task.config.num_fewshot or self.asked.fewshot or 0) > 0:
                _add(digest, task.fewshot_docs())
        return digest.hexdigest()


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """A list, or one string with commas, as a list."""
    listed = tasks.split(",") if isinstance(tasks, str) else tasks
    return [name.strip() for name in listed if name.strip()]


def _add(digest: Any, documents: Iterable[Any] | None) -> None:
    for document in documents or ():
        digest.update(json.dumps(document, sort_keys=True, default=str).encode())


def _tokenizer_text(tokenizer: Any) -> str:
    """A fast tokenizer's whole definition; of others the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(backend.to_str()) if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
