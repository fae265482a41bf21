"""What is told after a model was quantized."""

from types import SimpleNamespace
from typing import Any

from rich.console import Console

from channelwise.report.summary import quantize_summary


def printed(sites: list[Any], floating: tuple[str, ...] = (), resumed: int = 0) -> str:
    sizes = SimpleNamespace(model_bytes=2_000_000, bits_per_weight=16.0)
    outcome = SimpleNamespace(
        skeleton=SimpleNamespace(can_generate=lambda: True),
        before=sizes,
        after=SimpleNamespace(model_bytes=500_000, bits_per_weight=4.1),
        record=SimpleNamespace(sites=sites, seconds=3.0, floating=floating),
        resumed=resumed,
    )
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(quantize_summary("model", "recipe", "output", outcome))
    return capture.get()


def site(name: str, layers: dict[str, Any], **notes: str) -> Any:
    return SimpleNamespace(name=name, linears=tuple(layers), layers=layers, notes=notes)


def test_what_a_recipe_had_no_choice_in_is_not_told() -> None:
    text = printed([site("q", {"q": {}})])
    assert "25%" in text and "1 linear layers" in text
    assert "formats" not in text and "direction" not in text and "warning" not in text


def test_chosen_formats_and_directions_are_counted_the_most_common_first() -> None:
    layers = {name: {"weights": "E2M1", "inputs": "E1M2", "direction": "ic"} for name in "abc"}
    layers["d"] = {"weights": "E3M0", "inputs": "E1M2", "direction": "oc"}
    text = printed([site("a", layers)])
    assert "E2M1 in 3, E3M0 in 1" in text
    assert "E1M2 in 4" in text
    assert "ic in 3, oc in 1" in text


def test_a_warning_is_told_once_with_how_many_sites_and_the_first_of_them() -> None:
    names = ("first", "second", "third", "fourth")
    text = printed([site(name, {name: {}}, warning="few tokens") for name in names])
    assert text.count("few tokens") == 1
    assert "4 sites: first, second, third and 1 more" in text


def test_what_stays_in_floating_point_is_named() -> None:
    text = printed([site("q", {"q": {}})], floating=("vision_tower", "lm_head"))
    assert "floating point" in text and "vision_tower, lm_head" in text
    assert "floating point" not in printed([site("q", {"q": {}})])


def test_what_an_earlier_run_had_done_is_told() -> None:
    assert "8 stages were finished before" in printed([site("q", {"q": {}})], resumed=8)
    assert "1 stage was finished before" in printed([site("q", {"q": {}})], resumed=1)
    assert "resume" not in printed([site("q", {"q": {}})])
