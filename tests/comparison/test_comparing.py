"""`compare`: what is measured once is not measured again, and what it tells."""

import copy
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise import api
from channelwise.comparison import runs
from channelwise.comparison.task_questions import TaskOptions, TaskQuestions
from channelwise.errors import InputError, NumericalError
from channelwise.evaluation import speed
from channelwise.recipe import load_recipe
from tests.cli import tiny
from tests.conftest import IN_CI
from tests.evaluation.task_documents import HUB, written

TEXTS = tiny.sentences(120)
TIMES = ("quantize_seconds", "seconds", "tokens_per_second", "speed_over_fp", "cached")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llama()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.byte_tokenizer()


@pytest.fixture
def compare(model: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`compare("rtn-w8a8", seed=1)`: on the tiny Llama, with a cache of the test's own."""

    def call(*recipes: Any, **options: Any) -> dict[str, Any]:
        common = {"data": TEXTS, "perplexity": TEXTS, "samples": 4, "length": 32, "cache": tmp_path / "runs"}
        return api.compare(model, recipes=recipes, tokenizer=tokenizer, **{**common, **options})

    return call


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of the weights of every walk there was."""
    walks: list[int] = []
    real = runs.quantize_model

    def counted(model: Any, batches: Any, plan: Any, **options: Any) -> Any:
        walks.append(plan.weights.grids[0].bits)
        return real(model, batches, plan, **options)

    monkeypatch.setattr(runs, "quantize_model", counted)
    return walks


@pytest.fixture(scope="module")
def found(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Three recipes that choose different things."""
    ada = load_recipe("rtn-ada-w4g128", ["name=ada", "weights.group_size=16"])
    recipes = ["os-plus-w6a6", "llm-fp4-w4a4", ada]
    return api.compare(
        model, recipes=recipes, data=TEXTS, perplexity=TEXTS, tokenizer=tokenizer, samples=4, length=32, seed=7
    )


def lasting(results: dict[str, Any]) -> dict[str, Any]:
    """All but what is another at every measurement."""
    return {key: value for key, value in results.items() if key not in TIMES}


class TestCache:
    def test_one_more_recipe_costs_one_recipe(self, compare: Callable[..., dict], quantized: list[int]) -> None:
        first = compare("rtn-w8a8", "rtn-w6a6")
        second = compare("rtn-w8a8", "rtn-w4a4", "rtn-w6a6")
        assert quantized == [8, 6, 4]
        assert list(second["recipes"]) == ["rtn-w8a8", "rtn-w4a4", "rtn-w6a6"]
        cached = {name: results["cached"] for name, results in second["recipes"].items()}
        assert cached == {"rtn-w8a8": True, "rtn-w4a4": False, "rtn-w6a6": True}
        assert second["fp"] == {**first["fp"], "cached": True}
        for name, results in first["recipes"].items():
            assert second["recipes"][name] == {**results, "cached": True}

    def test_what_comes_from_the_cache_is_what_would_be_measured(self, compare: Callable[..., dict]) -> None:
        compare("outliertune-w6a6")
        cached = compare("outliertune-w6a6")["recipes"]["outliertune-w6a6"]
        measured = compare("outliertune-w6a6", cache=None)["recipes"]["outliertune-w6a6"]
        assert cached["cached"] and not measured["cached"]
        assert lasting(cached) == lasting(measured)

    def test_a_killed_comparison_goes_on_where_it_was(
        self, compare: Callable[..., dict], quantized: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = runs.layer_errors

        def killed(*arguments: Any) -> Any:
            if quantized == [8, 6]:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(runs, "layer_errors", killed)
        with pytest.raises(KeyboardInterrupt):
            compare("rtn-w8a8", "rtn-w6a6", "rtn-w4a4")
        monkeypatch.setattr(runs, "layer_errors", real)
        compare("rtn-w8a8", "rtn-w6a6", "rtn-w4a4")
        assert quantized == [8, 6, 6, 4]

    @pytest.mark.parametrize(
        "change",
        [{"seed": 1}, {"data": TEXTS[:60]}, {"perplexity": TEXTS[:60]}, {"perplexity_length": 16}, {"length": 16}],
    )
    def test_what_changes_the_results_is_measured_anew(
        self, compare: Callable[..., dict], quantized: list[int], change: dict
    ) -> None:
        compare("rtn-w8a8")
        assert not compare("rtn-w8a8", **change)["recipes"]["rtn-w8a8"]["cached"]
        assert quantized == [8, 8]

    def test_another_name_for_the_same_recipe_is_not(self, compare: Callable[..., dict], quantized: list[int]) -> None:
        first = compare("rtn-w8a8")["recipes"]["rtn-w8a8"]
        renamed = load_recipe("rtn-w8a8", ["name=mine", "summary=my own words"])
        found = compare(renamed)["recipes"]["mine"]
        assert quantized == [8]
        assert found == {**first, "summary": "my own words", "cached": True}

    def test_a_damaged_file_is_measured_and_written_anew(
        self, compare: Callable[..., dict], quantized: list[int], tmp_path: Path
    ) -> None:
        first = compare("rtn-w8a8")
        for path in (tmp_path / "runs").iterdir():
            path.write_text(path.read_text()[:-20])
        assert lasting(compare("rtn-w8a8")["recipes"]["rtn-w8a8"]) == lasting(first["recipes"]["rtn-w8a8"])
        assert compare("rtn-w8a8")["recipes"]["rtn-w8a8"]["cached"]
        assert quantized == [8, 8]

    def test_without_a_cache_nothing_is_kept(
        self, compare: Callable[..., dict], quantized: list[int], tmp_path: Path
    ) -> None:
        for _ in range(2):
            compare("rtn-w8a8", cache=None)
        assert quantized == [8, 8]
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_does_not_cost_the_results(
        self, compare: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(runs.Cache, "write", full)
        assert compare("rtn-w8a8")["recipes"]["rtn-w8a8"]["perplexity"] > 1.0

    def test_a_cache_that_cannot_be_written_is_found_before_the_work(
        self, compare: Callable[..., dict], quantized: list[int], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be made"):
            compare("rtn-w8a8", cache=tmp_path / "file")
        assert quantized == []


class TestSpeed:
    @pytest.fixture(autouse=True)
    def short_rounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(speed, "ENOUGH_SECONDS", 0.0)

    def test_it_is_told_where_it_was_asked_for(self, compare: Callable[..., dict]) -> None:
        found = compare("rtn-w8a8", speed=True)
        results = found["recipes"]["rtn-w8a8"]
        assert found["fp"]["speed_over_fp"] == {"prefill": 1.0, "decode": 1.0}
        for key in ("tokens_per_second", "speed_over_fp"):
            assert set(results[key]) == {"prefill", "decode"}
            assert all(value > 0.0 for value in results[key].values())
        silent = compare("rtn-w8a8")
        assert silent["fp"]["cached"] and silent["recipes"]["rtn-w8a8"]["cached"]
        assert silent["fp"]["speed_over_fp"] is silent["recipes"]["rtn-w8a8"]["tokens_per_second"] is None

    def test_asked_for_later_it_alone_is_measured(
        self, compare: Callable[..., dict], quantized: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = compare("rtn-w8a8")["recipes"]["rtn-w8a8"]

        def forbidden(*_: object) -> None:
            raise AssertionError("measured twice")

        monkeypatch.setattr(runs, "measure", forbidden)
        found = compare("rtn-w8a8", speed=True)["recipes"]["rtn-w8a8"]
        assert quantized == [8, 8]
        assert lasting(found) == lasting(first) and found["quantize_seconds"] == first["quantize_seconds"]
        assert compare("rtn-w8a8", speed=True)["recipes"]["rtn-w8a8"]["speed_over_fp"] == found["speed_over_fp"]

    def test_an_encoder_only_reads(self, tmp_path: Path) -> None:
        found = api.compare(
            tiny.bert(),
            recipes=["rtn-w8a8"],
            data=TEXTS,
            embeddings=TEXTS[:10],
            tokenizer=tiny.word_tokenizer(),
            samples=4,
            speed=True,
        )
        assert found["recipes"]["rtn-w8a8"]["speed_over_fp"]["decode"] is None
        assert found["recipes"]["rtn-w8a8"]["speed_over_fp"]["prefill"] > 0.0


class TestFailures:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
        """Lets the walk of every six-bit recipe fail."""

        def install(error: Exception) -> None:
            real = runs.quantize_model

            def failing(model: Any, batches: Any, plan: Any, **options: Any) -> Any:
                if plan.weights.grids[0].bits == 6:
                    raise error
                return real(model, batches, plan, **options)

            monkeypatch.setattr(runs, "quantize_model", failing)

        return install

    @pytest.mark.parametrize(
        ("error", "kind"), [(NumericalError("not finite"), NumericalError), (ValueError("not this"), RuntimeError)]
    )
    def test_an_error_names_the_recipe_and_keeps_what_is_done(
        self, compare: Callable[..., dict], broken: Callable, error: Exception, kind: type[Exception]
    ) -> None:
        broken(error)
        with pytest.raises(kind, match=r"recipe rtn-w6a6: .*not "):
            compare("rtn-w8a8", "rtn-w6a6", "rtn-w4a4")
        found = compare("rtn-w8a8", "rtn-w4a4")["recipes"]
        assert [results["cached"] for results in found.values()] == [True, False]

    def test_of_all_that_fit_a_failing_one_is_left_out(self, compare: Callable[..., dict], broken: Callable) -> None:
        broken(NumericalError("not finite"))
        found = compare("rtn-w8a8", "rtn-w6a6", "rtn-w4a4", skip_unfit=True)
        assert list(found["recipes"]) == ["rtn-w8a8", "rtn-w4a4"]
        assert found["skipped"] == {"rtn-w6a6": "recipe rtn-w6a6: not finite"}
        with pytest.raises(NumericalError):
            compare("rtn-w6a6", skip_unfit=True)


class TestWhatIsTold:
    def test_it_is_json(self, found: dict[str, Any]) -> None:
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert list(found) == ["model", "settings", "fp", "recipes", "skipped"]

    def test_the_model_and_the_settings(self, model: Any, found: dict[str, Any]) -> None:
        assert found["model"] == {
            "name": "LlamaForCausalLM",
            "architecture": "LlamaForCausalLM",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "linear_layers": 14,
            "blocks": 2,
        }
        settings = found["settings"]
        assert settings["data"] == settings["perplexity"] == "120 texts"
        assert (settings["samples"], settings["length"], settings["seed"]) == (4, 32, 7)
        assert settings["perplexity_length"] == found["fp"]["length"] == 64
        assert settings["threads"] == torch.get_num_threads() and settings["cpu"]
        assert set(settings["versions"]) == {"channelwise", "torch", "transformers"}

    def test_the_recipes(self, found: dict[str, Any]) -> None:
        results = found["recipes"]["os-plus-w6a6"]
        assert set(results) > set(found["fp"])
        assert results["paper"] == "arXiv:2304.09145" and results["summary"].startswith("Outlier Suppression+")
        assert (results["weights_bits"], results["inputs_bits"]) == (6, 6)
        assert found["recipes"]["ada"]["inputs_bits"] is None

    def test_every_layer(self, found: dict[str, Any]) -> None:
        layers = found["recipes"]["os-plus-w6a6"]["layers"]
        assert len(layers) == 14
        assert [layer["block"] for layer in layers] == [0] * 7 + [1] * 7
        assert layers[1] == {
            "name": "model.layers.0.self_attn.k_proj",
            "block": 0,
            "site": "model.layers.0.self_attn.q_proj",
            "kind": "stream",
            "shape": [16, 32],
            "bits_per_weight": 7.0,
            "weights": "int6 row",
            "inputs": "int6 static",
            "relative_error": layers[1]["relative_error"],
            "choices": layers[1]["choices"],
        }
        assert all(0.0 < layer["relative_error"] < 1.0 for layer in layers)

    def test_what_was_chosen(self, found: dict[str, Any]) -> None:
        layers = {name: results["layers"] for name, results in found["recipes"].items()}
        shifted = layers["os-plus-w6a6"][0]["choices"]
        assert 0.0 < shifted["threshold_over_largest"] <= 1.0 and shifted["threshold"] > 0.0
        assert layers["os-plus-w6a6"][3]["choices"]["clip"] <= 1.0
        for layer in layers["llm-fp4-w4a4"]:
            choices = layer["choices"]
            assert layer["weights"] == f"{choices['weight_format'].lower()} row"
            assert layer["inputs"] == f"{choices['input_format'].lower()} static"
            assert math.isfinite(choices["input_bias"])
        with_exponents = [layer["choices"] for layer in layers["llm-fp4-w4a4"] if "exponents" in layer["choices"]]
        assert with_exponents
        assert all(0 <= choices["exponents"]["mean"] <= choices["exponents"]["largest"] for choices in with_exponents)
        groups = {"oc": "uint4 row_group 16", "ic": "uint4 column_group 16"}
        assert all(layer["weights"] == groups[layer["choices"]["direction"]] for layer in layers["ada"])
        assert all(layer["inputs"] is None for layer in layers["ada"])

    def test_the_head_is_in_no_block(self, found: dict[str, Any]) -> None:
        head = found["recipes"]["llm-fp4-w4a4"]["layers"][-1]
        assert (head["name"], head["block"], head["kind"]) == ("lm_head", None, "head")
        assert head["relative_error"] > 0.0

    def test_every_site(self, found: dict[str, Any]) -> None:
        sites = found["recipes"]["os-plus-w6a6"]["sites"]
        assert len(sites) == 8
        assert sites[0]["linears"] == [f"model.layers.0.self_attn.{letter}_proj" for letter in "qkv"]
        assert sites[0]["channels"] == 32 and sites[0]["largest"] > 6 * sites[0]["median"]
        assert sites[0]["notes"]["threshold"] == found["recipes"]["os-plus-w6a6"]["layers"][0]["choices"]["threshold"]


def test_experts_taken_apart_have_their_errors(tokenizer: Any) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "max_position_embeddings": 64}
    found = api.compare(
        MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval(),
        recipes=["rtn-w8a8"],
        data=TEXTS,
        perplexity=TEXTS,
        tokenizer=tokenizer,
        samples=4,
    )
    experts = [layer for layer in found["recipes"]["rtn-w8a8"]["layers"] if "experts" in layer["name"]]
    assert len(experts) == 9 and all(0.0 < layer["relative_error"] < 0.1 for layer in experts)


class TestTasks:
    @pytest.fixture
    def tasks(self, tmp_path: Path) -> dict[str, Any]:
        if importlib.util.find_spec("lm_eval") is None:
            (pytest.fail if IN_CI else pytest.skip)('lm-evaluation-harness is not there: install "channelwise[eval]"')
        for task in ("piqa", "boolq"):
            written(tmp_path / "tasks", task, HUB[task])
        return {"tasks": "piqa,boolq", "task_data": tmp_path / "tasks", "perplexity": None}

    def test_scores_are_those_of_evaluate(
        self, compare: Callable[..., dict], model: Any, tokenizer: Any, tasks: dict[str, Any]
    ) -> None:
        found = compare("rtn-w4a4", **tasks)
        assert found["settings"]["tasks"] == ["piqa", "boolq"]
        assert set(found["fp"]["tasks"]) == {"piqa", "boolq"}
        coded = copy.deepcopy(model)
        api.quantize(coded, recipe="rtn-w4a4", data=TEXTS, tokenizer=tokenizer, samples=4, length=32)
        expected = api.evaluate(coded, tokenizer=tokenizer, **tasks)["tasks"]
        assert found["recipes"]["rtn-w4a4"]["tasks"] == expected
        assert compare("rtn-w4a4", **tasks)["recipes"]["rtn-w4a4"]["cached"]

    def test_other_tasks_are_other_questions(self, model: Any, tokenizer: Any, tasks: dict[str, Any]) -> None:
        folder = tasks["task_data"]

        def digest(**options: Any) -> str:
            asked = TaskOptions(**{"tasks": "piqa,boolq", "task_data": folder, **options}).asked()
            questions = TaskQuestions.of(asked, model, tokenizer)
            assert questions is not None
            return questions.digest()

        same = digest()
        assert digest(tasks=["piqa", "boolq"]) == same
        written(folder, "boolq", HUB["boolq"][:2])
        changed = [digest(), digest(tasks="piqa"), digest(limit=1)]
        assert len({same, *changed}) == 4

    def test_options_of_tasks_need_tasks(self, compare: Callable[..., dict]) -> None:
        with pytest.raises(InputError, match="go with --tasks"):
            compare("rtn-w8a8", limit=3)
