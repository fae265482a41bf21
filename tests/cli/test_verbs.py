"""Every verb, on tiny models."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from channelwise.recipe import recipe_names
from tests.cli import tiny
from tests.cli.conftest import Run

EVALUATED = {"perplexity", "tokens", "seconds", "model_bytes", "bits_per_weight"}


def results_of(done: Run) -> dict:
    """The one JSON object on standard output."""
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)


def test_recipes_lists_every_name(run: Callable[..., Run]) -> None:
    done = run("recipes")
    assert done.status == 0
    assert all(name in done.stdout for name in recipe_names())
    assert set(results_of(run("recipes", "--json"))) == set(recipe_names())


def test_recipes_prints_one_as_yaml(run: Callable[..., Run]) -> None:
    done = run("recipes", "outliertune-w6a6")
    assert yaml.safe_load(done.stdout)["name"] == "outliertune-w6a6"
    assert results_of(run("recipes", "outliertune-w6a6", "--json"))["weights"]["bits"] == 6


def test_a_printed_recipe_is_a_recipe_file(run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(run("recipes", "rtn-w8a8").stdout, encoding="utf-8")
    output = tmp_path / "out"
    done = run("quantize", llama, "--recipe", mine, "--data", text, "--output", output, "--samples", 2)
    assert done.status == 0, done.stderr


def test_quantize_says_what_it_did(run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("quantize", llama, "--recipe", "outliertune-w6a6", "--data", text, "--output", output, "--samples", 4)
    assert done.status == 0, done.stderr
    assert "outliertune-w6a6" in done.stdout and "→" in done.stdout and "channelwise.load" in done.stdout
    assert "block 2 of 2" in done.stderr


def test_quantize_as_json(run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> None:
    options = ("--data", text, "--output", tmp_path / "out", "--samples", 4, "--json")
    found = results_of(run("quantize", llama, "--recipe", "rtn-w6a6", *options))
    assert found["recipe"] == "rtn-w6a6"
    assert found["model_bytes"] < found["model_bytes_before"]
    assert len(found["sites"]) == 8


def test_evaluate_measures_both_kinds_of_model(
    run: Callable[..., Run], llama: Path, quantized: Path, text: Path
) -> None:
    floating = results_of(run("evaluate", llama, "--perplexity", text, "--json"))
    coded = results_of(run("evaluate", quantized, "--perplexity", text, "--json"))
    assert set(floating) >= EVALUATED
    assert floating["tokens"] == coded["tokens"]
    assert floating["bits_per_weight"] == 32.0
    assert 8.0 < coded["bits_per_weight"] < 10.0
    assert coded["perplexity"] == pytest.approx(floating["perplexity"], rel=0.05)


def test_evaluate_as_people_read_it(run: Callable[..., Run], llama: Path, text: Path) -> None:
    done = run("evaluate", llama, "--perplexity", text)
    assert "perplexity" in done.stdout and "windows of 64" in done.stdout


def test_evaluate_embeddings(run: Callable[..., Run], bert: Path, labelled: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("quantize", bert, "--recipe", "outliertune-w8a8", "--data", labelled, "--output", output)
    assert done.status == 0, done.stderr
    found = results_of(run("evaluate", output, "--embeddings", labelled, "--against", bert, "--json"))
    assert set(found) >= EVALUATED
    assert 0.99 < found["cosine_min"] <= found["cosine_mean"] <= 1.0
    assert 0.0 <= found["probe_accuracy"] <= 1.0 and 0.0 <= found["probe_accuracy_fp"] <= 1.0
    page = run("evaluate", output, "--embeddings", labelled, "--against", bert).stdout
    assert "linear probe" in page


def test_evaluate_a_sequence_classifier(
    run: Callable[..., Run], classifier: Path, animals: Path, tmp_path: Path
) -> None:
    alone = results_of(run("evaluate", classifier, "--classification", animals, "--json"))
    assert set(alone) >= EVALUATED and alone["perplexity"] is None and alone["items"] == 40
    assert "agreement" not in alone and "accuracy_fp" not in alone
    output = tmp_path / "out"
    done = run("quantize", classifier, "--recipe", "rtn-w8a8", "--data", animals, "--output", output)
    assert done.status == 0, done.stderr
    assert "--classification FILE.tsv --against" in " ".join(done.stdout.split())
    options = ("--classification", animals, "--against", classifier)
    found = results_of(run("evaluate", output, *options, "--json"))
    assert found["accuracy_fp"] == alone["accuracy"]
    assert abs(found["accuracy"] - found["accuracy_fp"]) <= 1 - found["agreement"] < 0.5
    page = run("evaluate", output, *options).stdout
    assert "accuracy" in page and "of 40" in page and "agreement" in page


def test_evaluate_an_image_classifier(run: Callable[..., Run], vit: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("quantize", vit, "--recipe", "rtn-w8a8", "--data", images, "--output", output)
    assert done.status == 0, done.stderr
    assert "--images DIR --against" in " ".join(done.stdout.split()) and "generate" not in done.stdout
    found = results_of(run("evaluate", output, "--images", images, "--against", vit, "--json"))
    assert set(found) >= EVALUATED and found["items"] == 12 and found["tokens"] == 0
    assert abs(found["accuracy"] - found["accuracy_fp"]) <= 1 - found["agreement"] < 0.5
    assert "of 12)" in run("evaluate", vit, "--images", images).stdout


def test_an_npz_is_measured_like_the_folder(run: Callable[..., Run], vit: Path, images: Path, tmp_path: Path) -> None:
    # Listed by label, so that is their order in the folder.
    order = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    labels = np.repeat(["circle", "square", "star"], 4)
    np.savez(tmp_path / "images.npz", images=tiny.pictures(12)[order], labels=labels)
    of_folder = results_of(run("evaluate", vit, "--images", images, "--json"))
    of_npz = results_of(run("evaluate", vit, "--images", tmp_path / "images.npz", "--json"))
    assert of_npz["accuracy"] == of_folder["accuracy"]


def test_compare_classifiers(run: Callable[..., Run], vit: Path, images: Path) -> None:
    options = ("--recipes", "rtn-w8a8,rtn-w4a4", "--data", images, "--images", images, "--samples", 4)
    found = results_of(run("compare", vit, *options, "--json"))
    assert found["fp"]["accuracy_fp"] == found["fp"]["accuracy"] and found["fp"]["agreement"] == 1.0
    for results in found["recipes"].values():
        assert set(results) > set(found["fp"]) | {"quantize_seconds"}
        assert results["accuracy_fp"] == found["fp"]["accuracy"]
    page = run("compare", vit, *options).stdout
    assert "accuracy" in page and "100.0 %" in page and "agreement: share of the original's answers" in page
    assert "perplexity" not in page


def test_inspect_an_image_model(run: Callable[..., Run], vit: Path, images: Path) -> None:
    found = results_of(run("inspect", vit, "--data", images, "--samples", 4, "--json"))
    assert found["sites"][0]["tokens"] == 4 * 17


def test_compare(run: Callable[..., Run], llama: Path, text: Path) -> None:
    options = ("--recipes", "rtn-w8a8,outliertune-w6a6", "--data", text, "--perplexity", text, "--samples", 4)
    found = results_of(run("compare", llama, *options, "--json"))
    assert list(found) == ["model", "settings", "fp", "recipes", "skipped"]
    assert set(found["fp"]) >= EVALUATED
    assert list(found["recipes"]) == ["rtn-w8a8", "outliertune-w6a6"]
    for results in found["recipes"].values():
        assert set(results) > set(found["fp"]) | {"quantize_seconds"}
        ratio = results["perplexity"] / found["fp"]["perplexity"]
        assert results["perplexity_ratio"] == pytest.approx(ratio)


def test_demo_runs_every_recipe(run: Callable[..., Run], text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from channelwise import api

    # As wide as the groups of the recipes.
    model, tokenizer = tiny.llama(hidden_size=128, intermediate_size=128), tiny.byte_tokenizer()

    def small(*_: object, **options: object) -> dict:
        options = {**options, "data": text, "perplexity": text, "samples": 2, "length": 16, "tokenizer": tokenizer}
        return real(model, **options)  # type: ignore[arg-type]

    real = api.compare
    monkeypatch.setattr(api, "compare", small)
    done = run("demo")
    assert done.status == 0, done.stderr
    assert all(name in done.stdout for name in recipe_names())
    assert "floating point" in done.stdout


def test_inspect(run: Callable[..., Run], llama: Path, text: Path) -> None:
    found = results_of(run("inspect", llama, "--data", text, "--samples", 4, "--json"))
    sites = found["sites"]
    assert [site["kind"] for site in sites[:4]] == ["stream", "inner", "stream", "inner"]
    assert sites[0]["linears"][0] == "model.layers.0.self_attn.q_proj"
    assert sites[0]["ratio"] > 6
    assert sites[0]["folds_into"] == "model.layers.0.input_layernorm"
    page = run("inspect", llama, "--data", text, "--samples", 4).stdout
    assert "q,k,v_proj" in page and "hard" in page and "try" in page


def test_generate_goes_on_from_the_prompt(run: Callable[..., Run], llama: Path, quantized: Path) -> None:
    for model in (llama, quantized):
        found = results_of(run("generate", model, "--prompt", "the cat", "--max-tokens", 5, "--json"))
        assert found["text"].startswith("the cat") and found["tokens"] <= 5
        assert run("generate", model, "--prompt", "the cat", "--max-tokens", 5).stdout.startswith("the cat")
