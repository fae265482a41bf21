"""A task's documents from a local file: one JSON object a line, in the hub's form or in that of LLM Foundry's files."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from channelwise.errors import InputError

Document = dict[str, Any]


@dataclass(frozen=True)
class PublishedForm:
    """How LLM Foundry's evaluation files hold a task, and the same document as the hub's data set holds it.

    fields: of a line of the file. original: from a line to the document that the harness's task reads. Raises
    ValueError, with what was expected, for a line that is not in the form.
    """

    fields: tuple[str, ...]
    original: Callable[[Mapping[str, Any]], Document]


def read_documents(path: Path, task: str) -> list[Document]:
    """The documents of a task as the harness's definition reads them.

    Raises InputError, naming file and line, for a missing or empty file, a line that is no JSON object, lines that do
    not all have the same fields, and a line in LLM Foundry's form that cannot be turned into the hub's.
    """
    lines = _json_lines(path, task)
    form = PUBLISHED_FORMS.get(task)
    if form is None or not set(form.fields) <= set(lines[0][1]):
        return [document for _, document in lines]
    documents = []
    for number, line in lines:
        try:
            documents.append(form.original(line))
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}, line {number} is no document of {task}: {error}; mend the line") from error
    return documents


def _json_lines(path: Path, task: str) -> list[tuple[int, Document]]:
    """(line number, object) of every line that is not blank."""
    if not path.is_file():
        raise InputError(f"{path} is missing: --task-data needs one file for each task, here {path.name} for {task}")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); give a file of UTF-8 text") from error
    found: list[tuple[int, Document]] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg}; each line is one JSON object") from error
        if not isinstance(entry, dict):
            raise InputError(f"{path}, line {number} is no JSON object; each line is one document of {task}")
        if found and set(entry) != set(found[0][1]):
            raise InputError(
                f"{path}, line {number} has the fields {', '.join(sorted(entry))}, "
                f"line {found[0][0]} has {', '.join(sorted(found[0][1]))}; all documents of a task have the same"
            )
        found.append((number, entry))
    if not found:
        raise InputError(f"{path} is empty; each line is one document of {task}")
    return found


def _piqa(line: Mapping[str, Any]) -> Document:
    first, second = line["choices"]
    goal = _parts(r"Question: (.*?)\n?", line["query"])[0]
    return {"goal": goal, "sol1": first, "sol2": second, "label": _gold(line, 2)}


def _arc(line: Mapping[str, Any]) -> Document:
    choices = list(line["choices"])
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    question = _parts(r"Question: (.*)", line["query"])[0]
    answer = letters[_gold(line, len(choices))]
    return {"question": question, "choices": {"text": choices, "label": letters}, "answerKey": answer}


def _boolq(line: Mapping[str, Any]) -> Document:
    if list(line["choices"]) != ["no", "yes"]:
        raise ValueError('its choices are not ["no", "yes"]')
    # Greedy: a passage may hold a question of its own, the last one is the one that is asked.
    passage, question = _parts(r"Passage: (.*)\nQuestion: (.*)\?", line["query"])
    return {"passage": passage, "question": question, "label": _gold(line, 2)}


def _winogrande(line: Mapping[str, Any]) -> Document:
    first, second = line["context_options"]
    # An option is whole words, at least one.
    pairs = zip(first.split(" ")[:-1], second.split(" ")[:-1], strict=False)
    shared = "".join(f"{word} " for word, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if "_" in shared:
        raise ValueError("a text with _ has no place for the option")
    return {
        "sentence": f"{shared}_ {line['continuation']}",
        "option1": first.removeprefix(shared),
        "option2": second.removeprefix(shared),
        "answer": str(_gold(line, 2) + 1),
    }


def _lambada(line: Mapping[str, Any]) -> Document:
    context, last = line["context"], line["continuation"].strip()
    if not last or " " in last:
        raise ValueError(f"its continuation {last!r} is not one word")
    return {"text": f"{context} {last}"}


def _gold(line: Mapping[str, Any], choices: int) -> int:
    """The number of the right choice."""
    gold = line["gold"]
    if not isinstance(gold, int) or not 0 <= gold < choices:
        raise ValueError(f"gold is {gold!r}, it counts the {choices} choices from 0")
    return gold


def _parts(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of a pattern that the whole text must match."""
    found = re.fullmatch(pattern, text, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"its query does not read {pattern.replace('(.*)', '…').replace('(.*?)', '…')!r}")
    return found.groups()


_CHOICES = ("query", "choices", "gold")
PUBLISHED_FORMS: Mapping[str, PublishedForm] = {
    "piqa": PublishedForm(_CHOICES, _piqa),
    "arc_easy": PublishedForm(_CHOICES, _arc),
    "arc_challenge": PublishedForm(_CHOICES, _arc),
    "boolq": PublishedForm(_CHOICES, _boolq),
    "winogrande": PublishedForm(("context_options", "continuation", "gold"), _winogrande),
    "lambada_openai": PublishedForm(("context", "continuation"), _lambada),
    "lambada_standard": PublishedForm(("context", "continuation"), _lambada),
}
"""By the harness's names of the tasks."""
