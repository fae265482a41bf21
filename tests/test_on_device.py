"""A model streamed through a GPU, a simulated one, into a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import channelwise
from channelwise.recipe import Recipe, load_recipe
from tests.engine.test_on_device import BATCHES, small_llama
from tests.simulated import Simulation, move_own

IDS = torch.cat([batch["input_ids"] for batch in BATCHES])
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path, simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's directory. Its streamed weights are moved in the way that a simulated device allows."""
    monkeypatch.setattr("channelwise.opening._move", move_own)
    small_llama().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def small_recipe(name: str) -> Recipe:
    data = load_recipe(name).model_dump()
    if data["weights"].get("group_size"):
        data["weights"]["group_size"] = 16
    return Recipe(**data)


def written(model: str, recipe: str, output: Path, device: str, memory: int | None = None) -> bytes:
    channelwise.quantize(
        model, recipe=small_recipe(recipe), data=IDS, output=output, samples=6, length=12, device=device,
        activation_memory=memory,
    )  # fmt: skip
    return (output / WEIGHTS).read_bytes()


@pytest.mark.parametrize("recipe", ["outliertune-w8a8", "gptq-ada-w3g128"])
def test_hidden_states_stay_on_the_device_if_they_fit_which_changes_nothing(
    simulation: Simulation, model: str, tmp_path: Path, recipe: str
) -> None:
    expected = written(model, recipe, tmp_path / "kept", "cuda:0")
    assert simulation.waits["engine/hidden.py: _read"] == 0
    assert written(model, recipe, tmp_path / "spilled", "cuda:0", memory=0) == expected
    assert simulation.waits["engine/hidden.py: _read"] > 0


def test_weights_go_to_the_device_once_and_results_come_back_once(
    simulation: Simulation, model: str, tmp_path: Path
) -> None:
    written(model, "outliertune-w8a8", tmp_path / "there", "cuda:0")
    # A block has seven layers and two norms; the first pass, which learns what a block returns, needs them once more.
    # Outside are embedding, norm, head and the rotary frequencies twice, at both ends of the walk.
    assert simulation.waits["opening.py: load"] == 2 * 9 + 2 * 5
    assert simulation.waits["checkpoint/shards.py: _save"] == len(load_file(tmp_path / "there" / WEIGHTS))
