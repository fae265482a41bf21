"""What the pages say in words, and what that rests on."""

import pytest

from channelwise.report.page.comparison import comparison_page
from channelwise.report.page.comparison_words import best_by_width, loss_text, scored, summary
from channelwise.report.page.inspection_words import next_command, outlier_channels
from channelwise.report.page.inspection_words import summary as inspection_summary
from channelwise.report.page.quality import MEASURES, measured, pareto_front, readable_limit, widths
from tests.report.results import comparison, profile

RATIO = MEASURES[0]
AGREEMENT = next(measure for measure in MEASURES if measure.key == "agreement")


def text_of(results: dict) -> str:
    measure = measured(results)[0]
    return " ".join(summary(results, measure, {"weights alone": ["gptq-ada-w3g128"]}))


def test_the_best_the_smallest_the_fastest_and_the_failures_are_named() -> None:
    text = text_of(comparison())
    assert "Closest to floating point is outliertune-w8a8 at 8.13 bits per weight: perplexity +0.06 %" in text
    assert "at most 1 %: outliertune-w8a8" in text and "at most 10 %: gptq-ada-w3g128 (3.15 bits" in text
    assert "at generating: gptq-ada-w3g128, 2.54 times" in text
    assert "rtn-w4a4 (5,120 × FP), rtn-w6a6 (34 × FP) fail badly" in text
    assert "weights alone: gptq-ada-w3g128" in text


def test_where_all_fail_that_is_said() -> None:
    results = comparison()
    results["recipes"] = {"rtn-w6a6": results["recipes"]["rtn-w6a6"]}
    text = text_of(results)
    assert "no recipe here keeps the model whole" in text and "None stays within 10 %" in text
    assert "rtn-w6a6 (34 × FP) fails badly" in text


def test_nothing_is_called_fast_that_is_slower_than_the_original() -> None:
    results = comparison()
    for found in results["recipes"].values():
        found["speed_over_fp"] = {"prefill": 0.8, "decode": None}
    text = text_of(results)
    assert "at reading a prompt: none is faster" in text and "generating" not in text


def test_each_width_has_its_best_recipe() -> None:
    results = comparison()
    best = best_by_width(scored(results, RATIO), RATIO)
    assert [(line.widths, line.name) for line in best] == [
        ("W8A8", "outliertune-w8a8"),
        ("W6A6", "outliertune-w6a6"),
        ("W4A4", "llm-fp4-w4a4"),
        ("W4", "gptq-ada-w4g128"),
        ("W3", "gptq-ada-w3g128"),
    ]
    assert [line.others for line in best] == [1, 1, 1, 0, 1]


def test_classifiers_are_judged_by_the_answers_they_keep() -> None:
    results = comparison()
    for index, found in enumerate([results["fp"], *results["recipes"].values()]):
        found.update(perplexity=None, perplexity_ratio=None, accuracy=0.9, agreement=1.0 - index / 100)
    assert measured(results)[0] is AGREEMENT
    text = text_of(results)
    assert "agreement with FP's answers −1 points" in text
    assert "FP&#39;s answers" in comparison_page(results)


def test_an_unfinished_recipe_is_told_and_left_out_of_everything_else() -> None:
    results = comparison()
    results["recipes"]["rtn-w8a8"] = {"error": "fc1: not finite"}
    page = comparison_page(results)
    assert "rtn-w8a8 stopped: fc1: not finite" in page
    assert "rtn-w8a8" not in text_of(results)


@pytest.mark.parametrize(
    ("loss", "measure", "text"),
    [
        (0.0123, RATIO, "+1.2 %"),
        (-0.001, RATIO, "−0.1 %"),
        (1.5, RATIO, "2.5 × FP"),
        (0.021, AGREEMENT, "−2.1 points"),
        (-0.01, AGREEMENT, "+1 points"),
    ],
)
def test_losses_as_people_read_them(loss: float, measure: object, text: str) -> None:
    assert loss_text(loss, measure) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "verdicts"), [(0.005, "close close"), (0.04, "fair fair"), (0.15, "poor poor"), (1.2, "failed failed")]
)
def test_verdicts(loss: float, verdicts: str) -> None:
    assert f"{RATIO.verdict(loss)} {AGREEMENT.verdict(loss)}" == verdicts


def test_a_front_holds_what_no_other_beats_in_both() -> None:
    points = {"small": (2.0, 0.5), "worse": (2.5, 0.6), "middle": (4.0, 0.1), "twin": (4.0, 0.1), "big": (8.0, 0.01)}
    assert pareto_front(points) == ["small", "middle", "twin", "big"]
    assert pareto_front({"wasteful": (9.0, 0.01), "big": (8.0, 0.01)}) == ["big"]


def test_the_readable_part_of_a_chart_ends_where_most_recipes_are_in_it() -> None:
    assert readable_limit([0.01, 0.02, 0.3]) == 0.02
    assert readable_limit([0.01, 0.3, 5000.0]) == 0.5
    assert readable_limit([5000.0]) == 10.0


def test_widths_of_recipes() -> None:
    recipes = comparison()["recipes"]
    assert widths(recipes["rtn-w8a8"]) == "W8A8" and widths(recipes["rtn-w3g128"]) == "W3"


def test_an_inspection_says_what_is_hard_what_it_costs_and_what_to_try() -> None:
    data = profile()
    found = inspection_summary(data, [f"site {index}" for index in range(len(data["sites"]))])
    lines = {line.heading: line.text for line in found}
    assert "up to 40 times the median channel where blocks read the residual stream" in lines["What is hard"]
    assert "The hardest is site 4: 1 of 64 channels reaches beyond 6 times" in lines["What is hard"]
    assert found[1].items[0] == "W8A8 static: 0.03 %, 0.8 % (v_proj of block 1)"
    assert "from 40.0 to 1.0 times" in lines["What a transform does"]
    assert "at 4 of 16 sites, a shift too at 4. Elsewhere" in lines["What can be folded"]
    assert lines["What to try"].startswith("outliertune-w8a8 or os-plus-w8a8")
    assert "--recipes rtn-w8a8,outliertune-w8a8,os-plus-w8a8,outliertune-static-w8a8" in next_command(data)


def test_a_model_without_outliers_is_told_so() -> None:
    data = profile(recipe=None)
    for site in data["sites"]:
        site["ratio"] = 2.0
    lines = {line.heading: line.text for line in inspection_summary(data, [""] * len(data["sites"]))}
    assert lines["What is hard"].startswith("No channel stands out") and "hardest" not in lines["What is hard"]
    assert lines["What to try"].startswith("rtn-w8a8 may do")
    assert "What a transform does" not in lines


def test_outlier_channels_are_counted_on_either_side() -> None:
    site = {"median": 1.0, "minima": [-7.0, -1.0, 0.0], "maxima": [1.0, 6.0, 6.5]}
    assert outlier_channels(site) == 2
