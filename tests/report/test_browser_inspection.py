"""The page of `inspect --report` in a real browser: made by hand, and of a real run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelwise.cli import process
from channelwise.report.page.inspection import write_inspection_page
from tests.cli import tiny
from tests.report.conftest import Opened
from tests.report.results import BLOCKS, PLACES, profile


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "inspection.html"
    write_inspection_page(profile(), path)
    return path


@pytest.fixture(scope="module")
def wide(opened: Callable[..., Opened], file: Path) -> Opened:
    return opened(file, scheme="dark")


@pytest.fixture(scope="module")
def narrow(opened: Callable[..., Opened], file: Path) -> Opened:
    return opened(file, width=400)


def plotted(found: Opened, chart: str, what: str) -> Any:
    return found.page.evaluate(f"document.getElementById('{chart}').{what}")


def test_it_loads_from_a_file_without_complaints_and_without_the_network(wide: Opened, narrow: Opened) -> None:
    for found in (wide, narrow):
        assert found.complaints == []
        assert [url for url in found.requests if not url.startswith("file:")] == []


def test_it_opens_with_what_is_hard_and_what_to_try(wide: Opened) -> None:
    text = wide.page.locator("#summary").inner_text()
    assert "up to 40 times the median channel" in text
    assert "outliertune-w8a8 or os-plus-w8a8" in text
    assert "channelwise compare opt-tiny" in text


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_nothing_sticks_out_and_no_text_of_a_chart_is_cut(width: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(width)
    assert found.sticks_out() <= 0
    assert found.cut_texts() == []


def test_the_heat_map_has_a_row_for_each_site_of_a_block(wide: Opened) -> None:
    assert plotted(wide, "heat", "layout.yaxis.ticktext.map((t) => t.trim())") == [
        "q,k,v_proj",
        "out_proj",
        "fc1",
        "fc2",
    ]
    assert plotted(wide, "heat", "data[0].z[0].map((v) => Math.round(10 ** v * 10) / 10)") == [1.5, 40.0, 1.5, 1.5]


def test_the_heat_map_shows_what_is_chosen(wide: Opened) -> None:
    wide.page.locator("#quantity").select_option("error:W8A8 static")
    worst = plotted(wide, "heat", "data[0].z[0].map((v) => 10 ** v)")
    assert worst == pytest.approx([3e-4, 8e-3, 3e-4, 3e-4])
    wide.page.locator("#quantity").select_option("ratio")


def test_the_hardest_site_is_shown_first_before_and_after_the_transform(wide: Opened) -> None:
    assert wide.page.locator("#site").input_value() == "4"
    before, after = (plotted(wide, "channels", f"data[{index}].y") for index in (0, 3))
    assert min(before) == before[7] == -80.0
    assert set(after) == {-1.0}
    assert plotted(wide, "channels", "data[2].x") == [7]
    assert "1 beyond 6 times the median channel" in wide.page.locator("#channel-caption").inner_text()
    assert wide.values("largest", 0)[0] == "7" and wide.values("largest", 1)[0] == "−80"


def test_choosing_a_site_shows_its_channels(wide: Opened) -> None:
    wide.page.locator("#site").select_option("2")
    assert min(plotted(wide, "channels", "data[0].y")) == -3.0
    assert "0 beyond" in wide.page.locator("#channel-caption").inner_text()


def test_channels_are_shown_the_largest_first(wide: Opened) -> None:
    wide.page.locator("#site").select_option("4")
    wide.page.get_by_text("largest first").click()
    low, high = (plotted(wide, "channels", f"data[{index}].y") for index in (0, 1))
    sizes = [max(-a, b) for a, b in zip(low, high, strict=True)]
    assert sizes == sorted(sizes, reverse=True) and low[0] == -80.0
    wide.page.get_by_text("as in the model").click()
    assert plotted(wide, "channels", "data[0].y[7]") == -80.0


def test_a_click_on_the_heat_map_shows_that_site(wide: Opened) -> None:
    cells = wide.page.locator("#heat .nsewdrag")
    frame = cells.bounding_box()
    cells.click(position={"x": frame["width"] * 2.5 / BLOCKS, "y": frame["height"] * 3.5 / 4})
    assert wide.page.locator("#site").input_value() == "11"


def test_errors_of_every_layer_are_drawn_and_sort(wide: Opened) -> None:
    assert plotted(wide, "errors", "data.map((t) => t.y.length)") == [BLOCKS * len(PLACES)] * 4
    wide.page.locator("#error-table th button", has_text="W8A8 static").click()
    values = [float(text.removesuffix(" %")) for text in wide.values("error-table", 4)]
    assert values == sorted(values) and values[-1] == 0.8
    assert wide.values("error-table", 0)[-3:] == ["q_proj", "k_proj", "v_proj"]


def test_sites_tell_what_they_fold_into(wide: Opened) -> None:
    assert wide.values("sites", 9)[:2] == ["self_attn_layer_norm", "–"]


def test_without_a_recipe_nothing_is_said_of_one(opened: Callable[..., Opened], tmp_path: Path) -> None:
    write_inspection_page(profile(recipe=None, blocks=1), tmp_path / "plain.html")
    found = opened(tmp_path / "plain.html")
    assert found.complaints == []
    assert "after" not in found.page.locator("main").inner_text()
    assert plotted(found, "channels", "data.length") == 3


def test_a_site_that_no_token_reached_is_a_dash(opened: Callable[..., Opened], tmp_path: Path) -> None:
    data = profile(blocks=2)
    silent = {"tokens": 0, "minima": [], "maxima": [], "after": None, "ratio": 0.0, "largest": 0.0, "median": 0.0}
    data["sites"][2] |= silent
    data["sites"][2]["layers"][0]["errors"] = dict.fromkeys(data["schemes"])
    write_inspection_page(data, tmp_path / "silent.html")
    found = opened(tmp_path / "silent.html")
    assert found.complaints == [] and "–" in found.values("sites", 4)
    assert found.page.locator("#site option[value='2']").is_disabled()


def test_a_real_run_is_written_as_a_page(
    opened: Callable[..., Opened], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.saved(tiny.llama(), tiny.byte_tokenizer(), tmp_path / "llama")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny.sentences(100)), encoding="utf-8")
    report = tmp_path / "report.html"
    arguments = ["inspect", str(source), "--data", str(text), "--samples", "4", "--report", str(report), "--json"]
    assert process.run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["recipe"] == "outliertune-w8a8" and "minima" not in printed["sites"][0]
    found = opened(report, width=400)
    assert found.complaints == [] and found.sticks_out() <= 0
    assert found.page.locator("#sites tbody tr").count() == len(printed["sites"]) == 8
    assert process.run(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_recipe_is_told_in_the_terminal_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny.saved(tiny.llama(), tiny.byte_tokenizer(), tmp_path / "llama")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny.sentences(100)), encoding="utf-8")
    arguments = ["inspect", str(source), "--data", str(text), "--samples", "2", "--recipe"]
    assert process.run([*arguments, "os-plus-w8a8"]) == 0
    page = capsys.readouterr().out
    assert "W8A8 static: " in page and "os-plus-w8a8 transforms 4 of 8 sites" in page
    assert process.run([*arguments, "none"]) == 0
    page = capsys.readouterr().out
    assert "W8A8 static: " in page and "transforms" not in page
