"""Documents of tasks from local files: both forms, and what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from channelwise.errors import InputError
from channelwise.evaluation.tasks_documents import read_documents
from tests.evaluation.task_documents import HUB, published, written

PIQA = {"query": "Question: home\n", "choices": ["far", "near"], "gold": 0}


def read(folder: Path, task: str, *documents: Any) -> list[dict[str, Any]]:
    return read_documents(written(folder, task, list(documents)), task)


@pytest.mark.parametrize("task", sorted(HUB))
def test_the_hubs_form_stays_as_it_is(tmp_path: Path, task: str) -> None:
    assert read(tmp_path, task, *HUB[task]) == HUB[task]


@pytest.mark.parametrize("task", ["piqa", "arc_easy", "boolq", "lambada_openai"])
def test_llm_foundrys_form_becomes_the_hubs(tmp_path: Path, task: str) -> None:
    assert read(tmp_path, task, *published(task)) == HUB[task]


def test_options_of_winogrande_are_the_words_that_differ_to_the_end(tmp_path: Path) -> None:
    line = {"context_options": ["so the old cat", "so the old dog food"], "continuation": ", far", "gold": 1}
    expected = {"sentence": "so the old _ , far", "option1": "cat", "option2": "dog food", "answer": "2"}
    assert read(tmp_path, "winogrande", line) == [expected]


def test_an_option_is_never_empty(tmp_path: Path) -> None:
    line = {"context_options": ["so the cat", "so the cat food"], "continuation": "was", "gold": 0}
    (found,) = read(tmp_path, "winogrande", line)
    assert (found["option1"], found["option2"]) == ("cat", "cat food")


def test_other_tasks_are_read_as_they_are(tmp_path: Path) -> None:
    assert read(tmp_path, "other", PIQA) == [PIQA]


def test_blank_lines_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "piqa.jsonl"
    path.write_text(f"\n{json.dumps(PIQA)}\r\n\n", encoding="utf-8")
    assert len(read_documents(path, "piqa")) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"a": 1}\n{"b": 1}', "line 2 has the fields b, line 1 has a"),
        (json.dumps({**PIQA, "gold": 2}), "gold is 2, it counts the 2 choices from 0"),
        (json.dumps({**PIQA, "gold": "0"}), "gold is '0'"),
        (json.dumps({**PIQA, "query": "home"}), "line 1 is no document of piqa: its query does not read"),
        (json.dumps({**PIQA, "choices": ["far"]}), "line 1 is no document of piqa"),
        (json.dumps({**PIQA, "choices": None}), "line 1 is no document of piqa"),
    ],
)
def test_a_defect_is_named_with_its_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "piqa.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_documents(path, "piqa")
    assert str(path) in str(caught.value) and told in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "piqa.jsonl"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="give a file of UTF-8 text"):
        read_documents(path, "piqa")


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("boolq", {"query": "Passage: a\nQuestion: b?", "choices": ["yes", "no"], "gold": 0}),
        ("winogrande", {"context_options": ["a _ cat", "a _ dog"], "continuation": "was", "gold": 0}),
        ("lambada_openai", {"context": "the", "continuation": "red cat"}),
    ],
)
def test_what_would_be_scored_otherwise_is_refused(tmp_path: Path, task: str, line: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="line 1 is no document of"):
        read(tmp_path, task, line)


def test_every_published_file_can_be_read(shared: Any) -> None:
    counts = {task: len(read_documents(shared(f"data/tasks/{task}.jsonl"), task)) for task in HUB}
    assert counts == {"piqa": 1838, "arc_easy": 2376, "boolq": 3270, "winogrande": 1267, "lambada_openai": 5153}
