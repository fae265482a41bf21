"""Tasks of lm-evaluation-harness: the same numbers as the harness by itself, and what people see of them."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import channelwise
from channelwise.errors import InputError, NumericalError
from channelwise.evaluation.tasks import ask_tasks
from channelwise.evaluation.tasks_definitions import LocalFiles, load_tasks, task_index
from tests.cli import tiny
from tests.cli.conftest import Run, run  # noqa: F401 — a fixture
from tests.conftest import IN_CI
from tests.evaluation.task_documents import HUB, published, written

if importlib.util.find_spec("lm_eval") is None:
    refuse = pytest.fail if IN_CI else pytest.skip
    refuse('lm-evaluation-harness is not installed: pip install "channelwise[eval]"', allow_module_level=True)

Numbers = dict[str, dict[str, Any]]

OWN_COUNTS = ("documents", "cut")
SPLITS = {"piqa": "validation", "arc_easy": "test", "boolq": "validation", "winogrande": "validation"}
SPLITS["lambada_openai"] = "test"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.llama(max_position_embeddings=256, tie_word_embeddings=True)
    return tiny.saved(model, tiny.byte_tokenizer(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def quantized(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head and an embedding that were tied and have codes of their own now."""
    output = tmp_path_factory.mktemp("models") / "quantized"
    channelwise.quantize(llama, recipe="llm-fp4-w4a4", data=tiny.sentences(40), output=output, samples=2)
    return output


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five tasks in LLM Foundry's form, and examples for one of them."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in HUB:
        written(folder, task, published(task))
    written(folder, "piqa", [*reversed(HUB["piqa"])], "train")
    return folder


def own_definition(folder: Path, task: str, name: str, splits: dict[str, Path]) -> None:
    """A YAML of the harness's kind: the harness's task under a name of its own, reading local files itself."""
    from lm_eval.tasks import _yaml_loader

    path = task_index().task_index[task].yaml_path
    unused = {"train", "validation", "test"} - set(splits)
    keys = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    definition = {
        "include": str(path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in splits.items()}},
        **{keys[split]: None for split in unused},
    }
    assert _yaml_loader.load_yaml(path)["task"] == task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML


def harness_alone(model: Path, folder: Path, names: list[str], **options: Any) -> Numbers:
    """What lm-evaluation-harness finds with those definitions, loading the checkpoint itself."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    arguments = {"pretrained": str(model)}
    found = lm_eval.simple_evaluate("hf", arguments, names, device="cpu", task_manager=manager, **options)
    return plain(found["results"])


def plain(results: dict[str, Any]) -> Numbers:
    """The numbers of the harness's own results, without the filter's name; it writes N/A where there is none."""
    return {
        name: {
            key.removesuffix(",none"): None if value == "N/A" else value for key, value in entry.items() if "," in key
        }
        for name, entry in results.items()
    }


def numbers(results: Numbers) -> Numbers:
    """The harness's numbers among ours."""
    return {
        name: {key: value for key, value in entry.items() if key not in OWN_COUNTS} for name, entry in results.items()
    }


def test_scores_are_those_of_the_harness_alone(
    quantized: Path, task_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours reads LLM Foundry's form, the harness the hub's; it also loads the checkpoint by itself."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for task, split in SPLITS.items():
        own_definition(tmp_path / "yaml", task, task, {split: written(tmp_path / "hub", task, HUB[task])})
    expected = harness_alone(quantized, tmp_path / "yaml", list(SPLITS), batch_size=2)
    found = channelwise.evaluate(quantized, tasks=list(SPLITS), task_data=task_data, batch=2)["tasks"]
    assert numbers(found) == expected
    assert {task: entry["documents"] for task, entry in found.items()} == {task: len(HUB[task]) for task in HUB}
    assert found["lambada_openai"]["perplexity_stderr"] > 0
    assert {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"} <= set(found["piqa"])


def test_examples_and_limit_are_those_of_the_harness_alone(
    llama: Path, task_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = {
        "train": written(tmp_path / "hub", "piqa", [*reversed(HUB["piqa"])], "train"),
        "validation": written(tmp_path / "hub", "piqa", HUB["piqa"]),
    }
    own_definition(tmp_path / "yaml", "piqa", "piqa", files)
    expected = harness_alone(llama, tmp_path / "yaml", ["piqa"], num_fewshot=2, limit=3)
    found = channelwise.evaluate(llama, tasks="piqa", task_data=task_data, fewshot=2, limit=3, batch=1)["tasks"]
    assert numbers(found) == expected
    assert found["piqa"]["documents"] == 3


def test_both_forms_ask_the_same(task_data: Path, tmp_path: Path) -> None:
    """Prompts, choices and answers, by the harness's own processing of the document."""
    for task in HUB:
        written(tmp_path, task, HUB[task])
    asked = []
    for folder in (tmp_path, task_data):
        requests = []
        for task in load_tasks(list(HUB), LocalFiles(folder)):
            task.set_config("num_fewshot", 0)
            task.build_all_requests()
            answers = [task.doc_to_text(document) for document in task.eval_docs]
            answers += [task.doc_to_target(document) for document in task.eval_docs]
            requests.append(([instance.args for instance in task.instances], answers))
        asked.append(requests)
    assert asked[0] == asked[1]
    assert asked[0][0][0][0] == ("Question: the cat sees the dog\nAnswer:", " it was slow")


def test_automatic_batches_change_rounding_only(llama: Path, task_data: Path) -> None:
    one, automatic = (
        channelwise.evaluate(llama, tasks=list(HUB), task_data=task_data, batch=batch)["tasks"] for batch in (1, None)
    )
    # A log-probability of about −6 has a rounding error of 5e-7 in float32, the logits behind it a few times that;
    # a last word has fewer than ten tokens, and exp turns the mean's absolute error into a relative one.
    assert automatic["lambada_openai"]["perplexity"] == pytest.approx(one["lambada_openai"]["perplexity"], rel=2e-5)
    assert all(automatic[task]["acc"] == one[task]["acc"] for task in HUB)


def test_batches_hold_about_as_many_tokens_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from channelwise.evaluation import tasks_model

    monkeypatch.setattr(tasks_model, "TOKENS_AT_ONCE", 40)
    sizes: list[tuple[int, int]] = []
    model = tiny.llama()
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    loaded = tasks_model.LoadedModel(model, tiny.byte_tokenizer(), None, lambda label, done, total: None)
    lengths = [30, 21, 20, 20, 9, 5, 5, 5, 5, 5, 5, 5, 5]
    requests = [(("", ""), list(range(length - 1)), [index, index]) for index, length in enumerate(lengths)]
    loaded._documents = [("task", index) for index in range(len(lengths))]
    loaded._loglikelihood_tokens(requests)
    assert sizes == [(1, 30), (1, 21), (2, 20), (4, 9), (5, 5)]
    assert loaded.cut == set()


def test_documents_beyond_the_window_are_counted(task_data: Path) -> None:
    model, tokenizer = tiny.llama(max_position_embeddings=24), tiny.byte_tokenizer()
    found = channelwise.evaluate(model, tokenizer=tokenizer, tasks="boolq,winogrande", task_data=task_data)["tasks"]
    lengths = [
        len(tokenizer(f"{document['passage']}\nQuestion: {document['question']}?\nAnswer: yes")["input_ids"])
        for document in HUB["boolq"]
    ]
    # The last token is predicted, not read.
    assert found["boolq"]["cut"] == sum(length > 25 for length in lengths) > 0
    assert found["winogrande"]["cut"] == 0


def test_the_tokenizer_stays_as_it_is(task_data: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token = None
    channelwise.evaluate(tiny.llama(), tokenizer=tokenizer, tasks="winogrande", task_data=task_data)
    assert tokenizer.pad_token is None


def test_logits_that_are_not_finite_have_no_score(task_data: Path) -> None:
    model = tiny.llama()
    model.lm_head.weight.data[3, 0] = torch.nan
    with pytest.raises(NumericalError, match="logits are not finite"):
        channelwise.evaluate(model, tokenizer=tiny.byte_tokenizer(), tasks="winogrande", task_data=task_data)


def test_lm_eval_measures_a_checkpoint_after_an_import(quantized: Path, task_data: Path, tmp_path: Path) -> None:
    """The documented command, on a task that the folder given by --include_path defines."""
    files = {"validation": written(tmp_path / "hub", "piqa", HUB["piqa"])}
    own_definition(tmp_path / "yaml", "piqa", "my_piqa", files)
    program = "import channelwise; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    options = ["--model", "hf", "--model_args", f"pretrained={quantized}", "--device", "cpu", "--tasks", "my_piqa"]
    folders = ["--include_path", str(tmp_path / "yaml"), "--output_path", str(tmp_path / "results")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *options, *folders], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "results").rglob("results*.json")
    expected = plain(json.loads(results.read_text(encoding="utf-8"))["results"])["my_piqa"]
    found = channelwise.evaluate(quantized, tasks="piqa", task_data=task_data, batch=1)["tasks"]
    assert numbers(found)["piqa"] == expected


def test_evaluate_as_json_with_perplexity(
    run: Callable[..., Run],  # noqa: F811
    quantized: Path,
    task_data: Path,
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(tiny.sentences(60)), encoding="utf-8")
    options = ("--tasks", "piqa, lambada_openai", "--task-data", task_data, "--limit", 2)
    done = run("evaluate", quantized, "--perplexity", text, *options, "--json")
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["perplexity"] > 1 and found["tokens"] > 100
    assert list(found["tasks"]) == ["piqa", "lambada_openai"]
    assert found["tasks"]["piqa"]["documents"] == 2
    assert "6 answers to score" in done.stderr and "%|" not in done.stderr


def test_evaluate_as_people_read_it(run: Callable[..., Run], quantized: Path, task_data: Path) -> None:  # noqa: F811
    done = run("evaluate", quantized, "--tasks", "arc_easy,lambada_openai", "--task-data", task_data)
    assert done.status == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["task", "metric", "value", "±", "error", "documents"]
    assert [line[:2] for line in lines if line[:1] == ["arc_easy"]] == [["arc_easy", "acc"]]
    assert ["lambada_openai", "perplexity"] in [line[:2] for line in lines]
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": "piqua"}, "has no task 'piqua'; did you mean piqa"),
        ({"tasks": " , "}, "no task to run"),
        ({"tasks": "hellaswag"}, "hellaswag.jsonl is missing"),
        ({"tasks": "piqa,arc_easy", "fewshot": 1}, "arc_easy.train.jsonl is missing"),
        ({"tasks": "ai2_arc"}, "ai2_arc is a group of tasks; with --task-data name single tasks"),
        ({"tasks": "piqa", "task_data": "nowhere"}, "no such folder: nowhere"),
        ({"tasks": "piqa", "limit": 0}, "--limit 0 is too few"),
        ({"tasks": "piqa", "batch": 0}, "--batch 0 is too few"),
        ({"tasks": "piqa", "fewshot": -1}, "--fewshot -1 is too few"),
        ({"tasks": None, "limit": 3}, "go with --tasks"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_opened(task_data: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        channelwise.evaluate("no such model", **{"task_data": task_data, **options})
    assert told in str(caught.value)


def test_the_harness_is_an_extra(task_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "channelwise\[eval\]"'):
        ask_tasks("piqa", task_data)


def test_documents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "piqa", [{"question": "where?", "answer": "home"}])
    with pytest.raises(InputError, match=r"piqa.jsonl does not fit the task piqa .*fields question, answer"):
        channelwise.evaluate(tiny.llama(), tokenizer=tiny.byte_tokenizer(), tasks="piqa", task_data=tmp_path)


def test_documents_that_cannot_be_fetched() -> None:
    with pytest.raises(InputError, match=r"the documents of piqa cannot be loaded .*FOLDER/piqa.jsonl"):
        channelwise.evaluate(tiny.llama(), tokenizer=tiny.byte_tokenizer(), tasks="piqa")


def test_a_model_that_predicts_no_tokens(task_data: Path) -> None:
    with pytest.raises(InputError, match="BertModel is no causal language model"):
        channelwise.evaluate(tiny.bert(), tokenizer=tiny.word_tokenizer(), tasks="piqa", task_data=task_data)


def test_a_model_without_a_tokenizer(task_data: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        channelwise.evaluate(tiny.llama(), tasks="piqa", task_data=task_data)
