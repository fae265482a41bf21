"""The page of `compare --report` in a real browser: made by hand, and of a real run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelwise.cli import process
from channelwise.report.page.comparison import write_comparison_page
from tests.cli import tiny
from tests.report.conftest import Opened
from tests.report.results import BLOCKS, PLACES, RECIPES, comparison


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "comparison.html"
    write_comparison_page(comparison(), path)
    return path


@pytest.fixture(scope="module")
def wide(opened: Callable[..., Opened], file: Path) -> Opened:
    return opened(file)


@pytest.fixture(scope="module")
def narrow(opened: Callable[..., Opened], file: Path) -> Opened:
    return opened(file, width=400, scheme="dark")


def plotted(found: Opened, chart: str, what: str) -> Any:
    return found.page.evaluate(f"document.getElementById('{chart}').{what}")


def test_it_loads_from_a_file_without_complaints_and_without_the_network(wide: Opened, narrow: Opened) -> None:
    for found in (wide, narrow):
        assert found.complaints == []
        assert [url for url in found.requests if not url.startswith("file:")] == []


def test_every_chart_is_there(wide: Opened) -> None:
    assert wide.page.locator(".chart").count() == 3
    points = plotted(wide, "plot", "data.filter((t) => t.mode === 'markers').map((t) => t.x.length)")
    assert sum(points) == len(RECIPES)
    assert plotted(wide, "heat", "data[0].z.length") == len(RECIPES)
    assert plotted(wide, "heat", "data[0].z[0].length") == BLOCKS * len(PLACES)
    assert plotted(wide, "layer-chart", "data.length") == len(PLACES)


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_nothing_sticks_out_and_no_text_of_a_chart_is_cut(width: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(width)
    assert found.sticks_out() <= 0
    assert found.cut_texts() == []


def test_a_wide_table_scrolls_in_its_own_box(narrow: Opened) -> None:
    box = narrow.page.locator("#table-section .box")
    assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")


def test_labels_in_the_plot_do_not_overlap(wide: Opened, narrow: Opened) -> None:
    script = """() => {
        const boxes = [...document.querySelectorAll('#plot .annotation-text')].map((t) => t.getBoundingClientRect());
        return boxes.some((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right
            && a.top + 3 < b.bottom && b.top + 3 < a.bottom));
    }"""
    for found in (wide, narrow):
        assert found.page.locator("#plot .annotation-text").count() > 3
        assert not found.page.evaluate(script)


def test_a_click_on_a_heading_sorts_and_another_one_turns_it_round(wide: Opened) -> None:
    heading = wide.page.get_by_role("columnheader", name="× FP")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    names = [name.removesuffix(" ●") for name in wide.values("results", 0)]
    assert names == sorted(RECIPES, key=lambda name: RECIPES[name][3])
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [name.removesuffix(" ●") for name in wide.values("results", 0)] == names[::-1]


def test_the_original_stays_on_top(wide: Opened) -> None:
    wide.page.locator("#results th button").nth(4).click()
    assert wide.page.locator("#results tbody").first.inner_text().startswith("floating point")


def test_a_recipe_that_fails_does_not_squeeze_the_others(wide: Opened) -> None:
    low, high = plotted(wide, "plot", "layout.yaxis.range")
    assert low < 1.0 < high < 2.0
    symbols = plotted(wide, "plot", "data.flatMap((t) => t.mode === 'markers' ? t.marker.symbol : [])")
    assert symbols.count("triangle-up-open") == sum(ratio > high for *_, ratio in RECIPES.values()) == 2
    assert "rtn-w4a4 5,100 ×" in wide.page.locator("#plot .annotation-text").all_text_contents()


def test_everything_is_shown_on_a_logarithmic_axis(wide: Opened) -> None:
    wide.page.get_by_text("everything", exact=True).click()
    assert plotted(wide, "plot", "layout.yaxis.type") == "log"
    assert plotted(wide, "plot", "layout.yaxis.range[1]") > 3.7  # log10 of 5,120
    wide.page.get_by_text("what is readable").click()
    assert plotted(wide, "plot", "layout.yaxis.type") == "linear"


def test_the_size_is_bits_or_bytes(wide: Opened) -> None:
    wide.page.get_by_text("MB", exact=True).click()
    assert plotted(wide, "plot", "layout.xaxis.title.text") == "model size, MB"
    sizes = plotted(wide, "plot", "data.filter((t) => t.mode === 'markers').flatMap((t) => t.x)")
    assert sorted(sizes) == sorted(found["model_bytes"] / 1e6 for found in comparison()["recipes"].values())
    wide.page.get_by_text("bits per weight", exact=True).click()


def test_choosing_a_recipe_shows_its_layers(wide: Opened) -> None:
    wide.page.locator("#recipe").select_option("gptq-ada-w3g128")
    layers = comparison()["recipes"]["gptq-ada-w3g128"]["layers"]
    assert wide.page.locator("#layers tbody tr").count() == len(layers)
    drawn = plotted(wide, "layer-chart", "data.find((t) => t.name === 'fc2').y")
    expected = [layer["relative_error"] for layer in layers if layer["name"].endswith("fc2")]
    assert drawn == pytest.approx(expected)
    assert "fc2 of block 2" in wide.page.locator("#layer-caption").inner_text()
    headings = wide.page.locator("#layers th button").all_inner_texts()
    assert headings[-4:] == ["group direction", "threshold t", "largest exponent", "mean exponent"]
    assert set(wide.values("layers", 6)) == {"oc", "ic"}


def test_the_table_of_layers_sorts_by_error(wide: Opened) -> None:
    wide.page.locator("#layers th button", has_text="relative error").click()
    errors = [float(text.removesuffix(" %")) for text in wide.values("layers", 5)]
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_a_click_on_the_heat_map_chooses_the_recipe(wide: Opened) -> None:
    cells = wide.page.locator("#heat .nsewdrag")
    height = cells.bounding_box()["height"]
    row = list(RECIPES).index("llm-fp4-w4a4")
    cells.click(position={"x": 30, "y": height * (row + 0.5) / len(RECIPES)})
    assert wide.page.locator("#recipe").input_value() == "llm-fp4-w4a4"


def test_charts_follow_the_colour_scheme(wide: Opened) -> None:
    light = plotted(wide, "plot", "layout.font.color")
    wide.page.emulate_media(color_scheme="dark")
    wide.wait_for(f"document.getElementById('plot').layout.font.color !== '{light}'")
    wide.page.emulate_media(color_scheme="light")
    wide.wait_for(f"document.getElementById('plot').layout.font.color === '{light}'")


def test_names_are_text_never_markup(opened: Callable[..., Opened], tmp_path: Path) -> None:
    nasty = "</script><img src=x onerror=\"document.title='broken'\">&amp;"
    results = comparison()
    results["recipes"] = {nasty: results["recipes"]["rtn-w8a8"]}
    results["model"]["name"] = nasty
    results["recipes"][nasty]["layers"][0]["choices"] = {nasty: nasty}
    results["recipes"][nasty]["layers"][1]["name"] = f"model.decoder.layers.0.{nasty}"
    write_comparison_page(results, tmp_path / "nasty.html")
    found = opened(tmp_path / "nasty.html")
    assert found.complaints == [] and found.page.title() != "broken"
    assert nasty in found.page.locator("h1").inner_text()
    assert found.page.locator("img").count() == 0
    assert nasty in found.page.locator("#layers th button").all_inner_texts()


def test_a_comparison_with_little_in_it_is_a_page_too(opened: Callable[..., Opened], tmp_path: Path) -> None:
    results = comparison(layers=False, speed=False)
    for found in (results["fp"], *results["recipes"].values()):
        found.update(perplexity=None, perplexity_ratio=None)
    del results["model"], results["settings"]
    write_comparison_page(results, tmp_path / "little.html")
    page = opened(tmp_path / "little.html")
    assert page.complaints == []
    assert "No quality was measured" in page.page.locator("#summary").inner_text()
    assert page.page.locator(".chart").count() == 0


def test_a_real_run_is_written_as_a_page(opened: Callable[..., Opened], tmp_path: Path) -> None:
    source = tiny.saved(tiny.llama(), tiny.byte_tokenizer(), tmp_path / "llama")
    text, report = tmp_path / "text.txt", tmp_path / "report.html"
    text.write_text("\n".join(tiny.sentences(100)), encoding="utf-8")
    options = ["--data", str(text), "--perplexity", str(text), "--samples", "4", "--no-cache", "--no-speed"]
    recipes = "rtn-w4a4,outliertune-w6a6"
    assert process.run(["compare", str(source), "--recipes", recipes, *options, "--report", str(report)]) == 0
    found = opened(report, width=400)
    assert found.complaints == [] and found.sticks_out() <= 0 and found.cut_texts() == []
    assert [name.removesuffix(" ●") for name in found.values("results", 0)] == recipes.split(",")
    assert found.page.locator("#layers tbody tr").count() == 14
    assert "outliertune-w6a6" in found.page.locator("#summary").inner_text()


def test_on_paper_charts_are_light_and_fit_the_page(wide: Opened) -> None:
    wide.page.emulate_media(color_scheme="dark")
    wide.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert plotted(wide, "plot", "querySelector('.main-svg').clientWidth") == 640
    assert plotted(wide, "plot", "layout.font.color") == "#1c1d1f"
    wide.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert plotted(wide, "plot", "querySelector('.main-svg').clientWidth") > 1000
    assert plotted(wide, "plot", "layout.font.color") != "#1c1d1f"
