"""`compare` and `demo`: the report's place, the cache, speed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelwise import api
from channelwise.comparison import runs
from channelwise.evaluation import speed
from tests.cli.conftest import Run

Compare = Callable[..., Run]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ENOUGH_SECONDS", 0.0)


@pytest.fixture
def compare(run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> Compare:
    """`compare("rtn-w8a8", "--json")`: on the tiny Llama, with a cache of the test's own."""

    def call(recipes: str, *options: object) -> Run:
        common = ("--data", text, "--perplexity", text, "--samples", 2, "--cache", tmp_path / "runs")
        return run("compare", llama, "--recipes", recipes, *common, *options)

    return call


@pytest.fixture
def no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a model is quantized after all."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model was quantized")

    monkeypatch.setattr(runs, "quantize_model", forbidden)


class TestReport:
    def test_it_is_written_beside_the_table(self, compare: Compare, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        done = compare("rtn-w8a8,rtn-w4a4", "--report", page)
        assert done.status == 0, done.stderr
        assert "rtn-w4a4" in done.stdout and "prefill" in done.stdout
        assert "page.html" in done.stderr
        assert "<html" in page.read_text() and "rtn-w4a4" in page.read_text()

    def test_with_json_there_is_nothing_else_on_standard_output(self, compare: Compare, tmp_path: Path) -> None:
        done = compare("rtn-w8a8", "--report", tmp_path / "page.html", "--json", "--no-speed")
        assert done.status == 0, done.stderr
        assert json.loads(done.stdout)["fp"]["speed_over_fp"] is None
        assert (tmp_path / "page.html").exists()

    @pytest.mark.usefixtures("no_walk")
    @pytest.mark.parametrize(
        ("name", "said"),
        [("old.html", "--overwrite"), ("none/page.html", "none is no folder"), ("page.txt", ".html"), ("", ".html")],
    )
    def test_a_place_that_cannot_be_is_found_before_the_work(
        self, compare: Compare, tmp_path: Path, name: str, said: str
    ) -> None:
        (tmp_path / "old.html").write_text("old")
        done = compare("rtn-w8a8", "--report", tmp_path / name)
        assert (done.status, done.stdout) == (2, "")
        assert said in done.stderr and done.stderr.count("\n") == 1
        assert (tmp_path / "old.html").read_text() == "old"

    def test_an_old_one_is_replaced_only_if_told_to(self, compare: Compare, tmp_path: Path) -> None:
        (tmp_path / "old.html").write_text("old")
        done = compare("rtn-w8a8", "--report", tmp_path / "old.html", "--overwrite")
        assert done.status == 0, done.stderr
        assert "<html" in (tmp_path / "old.html").read_text()

    def test_the_demo_has_one_too(self, run: Callable[..., Run], tmp_path: Path, monkeypatch: Any) -> None:
        asked: dict[str, Any] = {}
        real = api.compare

        def small(model: str, **options: Any) -> dict:
            asked.update(options)
            return real(model, **{**options, "recipes": ["rtn-w8a8"], "perplexity": ["def f(x):\n    return x\n" * 20]})

        monkeypatch.setattr(api, "compare", small)
        done = run("demo", "--samples", 1, "--report", tmp_path / "demo.html", "--cache", tmp_path / "runs")
        assert done.status == 0, done.stderr
        assert len(asked["recipes"]) > 30 and asked["speed"] and asked["samples"] == 1
        assert "rtn-w8a8" in (tmp_path / "demo.html").read_text()


class TestCache:
    def test_another_recipe_costs_one_recipe(self, compare: Compare, tmp_path: Path) -> None:
        assert compare("rtn-w8a8").status == 0
        done = compare("rtn-w8a8,rtn-w4a4")
        assert "rtn-w8a8: from the cache" in done.stderr and "rtn-w8a8: block" not in done.stderr
        assert "rtn-w4a4: block 2 of 2" in done.stderr
        assert "2 of 3 rows from the cache" in done.stdout
        assert len(list((tmp_path / "runs").iterdir())) == 3

    def test_no_cache(self, compare: Compare, tmp_path: Path) -> None:
        done = compare("rtn-w8a8", "--no-cache")
        assert done.status == 0 and "cache" not in done.stdout
        assert not (tmp_path / "runs").exists()

    @pytest.mark.usefixtures("no_walk")
    def test_a_cache_that_is_a_file(self, compare: Compare, text: Path) -> None:
        done = compare("rtn-w8a8", "--cache", text)
        assert (done.status, done.stdout) == (2, "")
        assert "--cache" in done.stderr and done.stderr.count("\n") == 1


def test_speed_alone(compare: Compare) -> None:
    silent = compare("rtn-w8a8").stdout
    assert "prefill" not in silent
    told = compare("rtn-w8a8", "--speed").stdout
    assert "prefill" in told and "decode" in told and "tokens read per second over the original's" in told


def test_all_leaves_out_what_does_not_fit(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channelwise.recipe.recipe_names", lambda: ("rtn-w8a8", "rtn-w4g128"))
    done = compare("all")
    assert done.status == 0, done.stderr
    assert "rtn-w4g128 left out: " in done.stdout and "groups of 128 do not fit" in " ".join(done.stdout.split())
