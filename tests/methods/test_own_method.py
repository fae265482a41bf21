"""A method from outside the package, named in a recipe by its import path."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import channelwise
from channelwise.cli import process
from channelwise.errors import InputError
from channelwise.recipe import Recipe, load_recipe
from tests.model.tiny_models import tiny_model

MODULE = """
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field

from channelwise.methods import SmoothQuant
from channelwise.methods.site import Choice


@dataclass(frozen=True)
class Power:
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    of: Literal["inputs", "weights"] = "inputs"

    def choose(self, site):
        return Choice(SmoothQuant(self.alpha).choose(site).transform, {"power": self.alpha})


@dataclass(frozen=True, slots=True)
class Needy:
    steps: int

    def __post_init__(self):
        if self.steps > 5:
            raise ValueError("steps beyond 5")

    def choose(self, site):
        return Choice(SmoothQuant(0.1 * self.steps).choose(site).transform)


@pydantic.dataclasses.dataclass(frozen=True)
class OfPydantic:
    steps: int = 3

    def choose(self, site):
        return SmoothQuant().choose(site)


@dataclass(frozen=True)
class OfTensors:
    start: torch.Tensor | None = None

    def choose(self, site):
        return SmoothQuant().choose(site)


@dataclass
class Changeable:
    def choose(self, site):
        return SmoothQuant().choose(site)


class NoDataclass:
    def choose(self, site):
        return SmoothQuant().choose(site)


@dataclass(frozen=True)
class NoMethod:
    steps: int = 3


constant = 3
"""

BROKEN = {"breaks": "raise RuntimeError('not\\ntoday')", "misspelt": "def (", "leaves": "import sys; sys.exit(3)"}
IDS = torch.randint(3, 64, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with modules that no package holds, forgotten afterwards."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name, text in {"mine": MODULE, **BROKEN, "wants": "import nowhere_at_all"}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ["mine", "wants", *BROKEN]:
        sys.modules.pop(name, None)


def recipe_with(method: str, recipe: str = "smoothquant-w8a8") -> Recipe:
    return load_recipe(recipe, [f"stream.method={method}"])


def method_of(text: str) -> Any:
    return recipe_with(text).to_plan().stream.method


def test_the_class_is_the_one_that_was_written() -> None:
    method = method_of("{name: 'mine:Power', alpha: 0.75}")
    assert type(method) is sys.modules["mine"].Power
    assert (method.alpha, method.of) == (0.75, "inputs")
    assert method_of("{name: 'mine:Needy', steps: 4}").steps == 4
    assert method_of("{name: 'mine:OfPydantic', steps: 4}").steps == 4


def test_a_recipe_with_it_is_plain_data_and_reads_back() -> None:
    recipe = recipe_with("{name: 'mine:Power', alpha: 0.75}")
    assert load_recipe(recipe.model_dump(mode="json")) == recipe
    assert recipe.to_plan() == recipe.to_plan()


def test_it_does_what_the_same_method_of_the_package_does() -> None:
    ours = channelwise.quantize(
        tiny_model("llama", torch.float32), recipe=recipe_with("{name: smoothquant, alpha: 0.75}"), data=IDS
    )
    own = channelwise.quantize(
        tiny_model("llama", torch.float32), recipe=recipe_with("{name: 'mine:Power', alpha: 0.75}"), data=IDS
    )
    states = ours.model.state_dict(), own.model.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    notes = [site.notes for site in own.record.sites if site.kind == "stream"]
    assert notes and all(note == {"power": 0.75} for note in notes)


def test_a_checkpoint_loads_where_the_method_is_not_there(outside: Path, tmp_path: Path) -> None:
    output = tmp_path / "own"
    written = channelwise.quantize(
        tiny_model("llama", torch.float32), recipe=recipe_with("{name: 'mine:Power'}"), data=IDS, output=output
    )
    (outside / "mine.py").unlink()
    del sys.modules["mine"]
    model, _ = channelwise.load(output)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, written.model(IDS).logits)
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{name: 'mine:Power', alpha: 2}", "stream.alpha: .*less than or equal to 1"),
        ("{name: 'mine:Power', alpha: high}", "stream.alpha: .*valid number"),
        ("{name: 'mine:Power', of: both}", "stream.of: .*'inputs' or 'weights'"),
        ("{name: 'mine:Power', beta: 1}", "mine:Power has no option 'beta'; it has alpha, of"),
        ("{name: 'mine:OfPydantic', step: 1}", "mine:OfPydantic has no option 'step'; it has steps"),
        ("{name: 'mine:Needy'}", "stream.steps: Field required"),
        ("{name: 'mine:Needy', steps: 6}", "steps beyond 5"),
        ("{name: 'mine:OfTensors'}", "mine:OfTensors: an option has a type that YAML cannot say"),
        ("{name: 'mine:Changeable'}", "mine:Changeable is no method: make it a frozen dataclass"),
        ("{name: 'mine:NoDataclass'}", "mine:NoDataclass is no method: make it a frozen dataclass"),
        ("{name: 'mine:NoMethod'}", r"mine:NoMethod is no method: give a class with choose\(site\)"),
        ("{name: 'mine:constant'}", "mine:constant is no method: give a class"),
        ("{name: 'os:system', command: 'echo no'}", "os:system is no method: give a class"),
        ("{name: 'mine:Powr'}", "mine:Powr: the module mine has no Powr"),
        ("{name: 'yours:Power'}", "cannot import yours: .*; install it, or set PYTHONPATH to the folder it is in"),
        ("{name: 'mine.deeper:Power'}", "cannot import mine.deeper"),
        ("{name: 'breaks:Power'}", "cannot import breaks: RuntimeError: not today; mend it"),
        ("{name: 'misspelt:Power'}", "cannot import misspelt: SyntaxError: .*; mend it"),
        ("{name: 'leaves:Power'}", "cannot import leaves: SystemExit: 3; mend it"),
        ("{name: 'wants:Power'}", "cannot import wants: .*nowhere_at_all"),
        ("{name: 'mine:'}", "'mine:' is no import path; give package.module:Class"),
        ("{name: ':Power'}", "':Power' is no import path"),
        ("{name: 'mine.py:Power'}", "cannot import mine.py"),
        ("{name: 'a/mine:Power'}", "'a/mine:Power' is no import path"),
        ("{name: [mine]}", r"unknown method \['mine'\]"),
    ],
)
def test_what_is_no_method_is_told_in_one_line(method: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe_with(method)
    assert "\n" not in str(caught.value)


def test_it_is_static_per_tensor_or_per_token() -> None:
    """Steps per channel are a matter of its transform, not of the recipe's granularity."""
    with pytest.raises(InputError, match="inputs per channel go with method outliertune"):
        recipe_with("{name: 'mine:Power'}", recipe="outliertune-w8a8")
    assert load_recipe(recipe_with("{name: 'mine:Power'}"), ["stream.inputs.granularity=token"])


def test_the_command_line_takes_it_and_refuses_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "never"
    common = ["quantize", "demo", "--recipe", "smoothquant-w8a8", "--data", "demo", "--output", str(output)]
    assert process.run([*common, "--set", "stream.method={name: 'mine:Powr'}"]) == process.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "has no Powr" in line
    assert not output.exists()


def test_a_changed_file_changes_what_a_recipe_tells_of_it(outside: Path) -> None:
    recipe = recipe_with("{name: 'mine:Power'}")
    before = recipe.own_methods()
    assert list(before) == ["mine:Power"] and recipe.own_methods() == before
    (outside / "mine.py").write_text(MODULE + "# another version", encoding="utf-8")
    assert recipe.own_methods() != before
    assert load_recipe("smoothquant-w8a8").own_methods() == {}
