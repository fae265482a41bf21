"""`channelwise quantize` beyond its plain run: the plan, sizes of memory, going on, and several processes."""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from channelwise.cli.app import app
from channelwise.cli.sizes import bytes_of
from channelwise.errors import InputError
from channelwise.forecasting import Forecast
from tests.cli import tiny
from tests.cli.conftest import Run

ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHER_VERBS = sorted({*typer.main.get_command(app).commands} - {"quantize"})  # type: ignore[attr-defined]
ARGUMENTS = {
    "demo": (),
    "recipes": (),
    "inspect": ("demo", "--data", "nowhere.txt"),
    "evaluate": ("demo", "--perplexity", "nowhere.txt"),
    "compare": ("demo", "--data", "nowhere.txt", "--recipes", "rtn-w8a8"),
    "generate": ("demo", "--prompt", "the"),
    "export": ("nowhere", "--output", "elsewhere"),
    "serve": ("nowhere",),
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """The directory of a tiny Llama with six blocks."""
    return tiny.saved(tiny.llama(num_hidden_layers=6), tiny.byte_tokenizer(), tmp_path / "deep")


class TestPlan:
    @pytest.mark.parametrize("recipe", ["rtn-w8a8", "os-plus-w6a6", "gptq-w4g128"])
    def test_tells_what_the_run_will_do_and_writes_nothing(
        self, recipe: str, run: Callable[..., Run], deep: Path, text: Path, tmp_path: Path
    ) -> None:
        sizes = ("--set", "weights.group_size=16") if "g128" in recipe else ()
        order = ("quantize", deep, "--recipe", recipe, *sizes, "--data", text, "--samples", 4, "--json", "--output")
        before = sorted(tmp_path.rglob("*"))
        done = run(*order, tmp_path / "out", "--dry-run")
        assert done.status == 0, done.stderr
        assert sorted(tmp_path.rglob("*")) == before
        plan = json.loads(done.stdout)
        assert set(plan) == {"model", "recipe", "output", *(field.name for field in fields(Forecast))}
        real = json.loads(run(*order, tmp_path / "out").stdout)
        assert plan["blocks"] == 6
        assert plan["sites"] == len(real["sites"])
        assert plan["linears"] == sum(len(site["linears"]) for site in real["sites"])
        assert plan["bytes_before"] == real["model_bytes_before"]
        # All blocks are alike, and so is what is outside of them.
        assert plan["bytes_after"] == real["model_bytes"]
        assert plan["tokens"] == real["sites"][0]["tokens"]
        assert plan["seconds"] > 0
        assert plan["peak_bytes"] > plan["largest_block"] > 0
        assert plan["streamed"]

    def test_of_a_head_and_an_embedding_counts_them(
        self, run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path
    ) -> None:
        order = ("quantize", llama, "--recipe", "llm-fp4-w4a4", "--set", "search_tokens=64", "--data", text)
        order = (*order, "--samples", 2, "--json", "--output", tmp_path / "out")
        plan, real = json.loads(run(*order, "--dry-run").stdout), json.loads(run(*order).stdout)
        assert plan["sites"] == len(real["sites"])
        assert plan["linears"] == sum(len(site["linears"]) for site in real["sites"])
        assert plan["bytes_after"] == pytest.approx(real["model_bytes"], rel=0.1)

    def test_as_people_read_it(self, run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> None:
        order = ("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / "out")
        done = run(*order, "--samples", 2, "--dry-run")
        assert done.status == 0, done.stderr
        for told in ("the plan", "14 linear layers at 8 sites", "peak memory", "hidden states", "time", "in memory"):
            assert told in done.stdout
        spilled = run(*order, "--samples", 2, "--dry-run", "--activation-memory", 0)
        assert "on disk" in spilled.stdout

    def test_refuses_what_the_run_would_refuse(
        self, run: Callable[..., Run], llama: Path, quantized: Path, text: Path
    ) -> None:
        done = run("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", quantized, "--dry-run")
        assert (done.status, done.stdout) == (2, "")
        assert "--overwrite" in done.stderr


class TestActivationMemory:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0", 0),
            ("1000000", 10**6),
            ("500MB", 5 * 10**8),
            ("500 mb", 5 * 10**8),
            ("2GiB", 2 * 2**30),
            (" 1.5 GiB ", 3 * 2**29),
            ("4KiB", 4096),
            ("3kB", 3000),
            ("1TiB", 2**40),
            ("0.5TB", 5 * 10**11),
        ],
    )
    def test_is_a_number_with_a_unit(self, text: str, expected: int) -> None:
        assert bytes_of(text, "--size") == expected

    @pytest.mark.parametrize("text", ["", "GiB", "-1", "-1GiB", "1e9", "1,5GB", "2 Gi", "2GiBs", "two GiB", "inf"])
    def test_of_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(InputError, match=re.escape(f"--size {text!r} is no size")):
            bytes_of(text, "--size")

    @given(st.integers(0, 2**50))
    def test_bytes_are_exact(self, count: int) -> None:
        assert bytes_of(str(count), "--size") == count

    def test_is_checked_before_the_work(self, run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> None:
        order = ("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / "out")
        done = run(*order, "--activation-memory", "much")
        assert done.status == 2
        assert done.stderr.startswith("error: --activation-memory 'much' is no size;")
        assert not (tmp_path / "out").exists()

    def test_changes_no_file(self, run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path) -> None:
        for name, memory in (("little", "20kB"), ("much", "1GiB")):
            order = ("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / name)
            assert run(*order, "--activation-memory", memory).status == 0
        little, much = (sorted((tmp_path / name).iterdir()) for name in ("little", "much"))
        assert [path.read_bytes() for path in little] == [path.read_bytes() for path in much]


class TestResume:
    def test_is_told_in_the_help(self, run: Callable[..., Run]) -> None:
        told = run("quantize", "--help").stdout
        assert "--resume" in told
        assert "--activation-memory" in told
        assert "--dry-run" in told

    def test_of_a_finished_run_tells_it_again(
        self, run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path
    ) -> None:
        order = ("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / "out", "--resume")
        first, again = json.loads(run(*order, "--json").stdout), json.loads(run(*order, "--json").stdout)
        assert (first.pop("resumed_stages"), again.pop("resumed_stages")) == (0, 3)
        for results in (first, again):
            results.pop("seconds")
            results.pop("phases")
        assert again == first
        told = run(*order)
        assert told.status == 0
        assert "→" in told.stdout

    def test_of_another_run_is_one_line_and_status_2(
        self, run: Callable[..., Run], llama: Path, quantized: Path, text: Path
    ) -> None:
        order = ("quantize", llama, "--recipe", "rtn-w6a6", "--data", text, "--output", quantized, "--resume")
        done = run(*order)
        assert (done.status, done.stdout, done.stderr.count("\n")) == (2, "", 1)


class TestLaunched:
    """In processes of torchrun's, or what looks like one."""

    @pytest.fixture
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        def launch(rank: int) -> None:
            monkeypatch.setattr("channelwise.cli.process._TELLING_SECONDS", 0.0)
            for name, value in zip(ALONE, (rank, rank, 2, "127.0.0.1", 29500), strict=True):
                monkeypatch.setenv(name, str(value))

        return launch

    def test_every_other_verb_is_tried(self) -> None:
        assert set(ARGUMENTS) == set(OTHER_VERBS)

    @pytest.mark.parametrize("verb", OTHER_VERBS)
    def test_other_verbs_are_refused_by_one_line_of_the_first(
        self, verb: str, run: Callable[..., Run], launched: Callable[[int], None]
    ) -> None:
        line = f"error: {verb} runs in one process, but the environment has WORLD_SIZE=2: start it without torchrun\n"
        for rank, told in ((0, line), (1, "")):
            launched(rank)
            done = run(verb, *ARGUMENTS[verb])
            assert (done.status, done.stdout, done.stderr) == (2, "", told)

    @pytest.mark.parametrize("arguments", [(), ("--version",), ("evaluate", "--help"), ("quantize", "--help")])
    def test_help_is_not(
        self, arguments: tuple[str, ...], run: Callable[..., Run], launched: Callable[[int], None]
    ) -> None:
        launched(0)
        assert run(*arguments).status == 0

    def test_a_launch_of_one_process_is_none(self, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
            monkeypatch.setenv(name, value)
        assert run("recipes").status == 0

    @pytest.mark.parametrize(
        ("given", "missing"),
        [
            (("RANK", "WORLD_SIZE"), "LOCAL_RANK and MASTER_ADDR and MASTER_PORT"),
            (("RANK", "LOCAL_RANK", "WORLD_SIZE"), "MASTER_ADDR and MASTER_PORT"),
        ],
    )
    def test_without_the_rendezvous_quantize_is_refused(
        self,
        given: tuple[str, ...],
        missing: str,
        run: Callable[..., Run],
        monkeypatch: pytest.MonkeyPatch,
        llama: Path,
        text: Path,
        tmp_path: Path,
    ) -> None:
        for name in given:
            monkeypatch.setenv(name, "2" if name == "WORLD_SIZE" else "0")
        done = run("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / "out")
        assert (done.status, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"not {missing}: start all processes by `torchrun" in done.stderr
        assert not (tmp_path / "out").exists()
