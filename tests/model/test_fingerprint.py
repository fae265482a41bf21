"""What tells one model's weights from another's: digests of parts, and fingerprints of the files."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from channelwise.model.skeleton import open_skeleton
from tests.model.test_loading import edit_config, edit_weights
from tests.model.tiny_models import tiny_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "single"
    tiny_model("llama", torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sharded"
    tiny_model("llama", torch.bfloat16).save_pretrained(folder, max_shard_size="8KB")
    return folder


@pytest.fixture
def broken(single: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(single, tmp_path / "copy"))


def test_one_changed_value_changes_the_digest_of_its_part_alone(broken: Path) -> None:
    names = ("", "model.layers.0", "model.layers.1")
    before = {name: open_skeleton(broken)[2].digest(name) for name in names}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 4] += 1

    edit_weights(broken, change)
    after = {name: open_skeleton(broken)[2].digest(name) for name in names}
    assert [name for name in names if before[name] != after[name]] == ["model.layers.1"]


def test_a_fingerprint_is_plain_data_that_knows_the_same_files_again(sharded: Path, tmp_path: Path) -> None:
    earlier = json.loads(json.dumps(open_skeleton(sharded)[2].fingerprint()))
    copy = shutil.copytree(sharded, tmp_path / "elsewhere")
    edit_config(copy, _name_or_path="elsewhere", transformers_version="5.0.0")
    assert open_skeleton(copy)[2].changed(earlier) is None


def test_what_has_changed_is_named(broken: Path) -> None:
    earlier = open_skeleton(broken)[2].fingerprint()
    edit_config(broken, rms_norm_eps=0.5)
    assert open_skeleton(broken)[2].changed(earlier) == "config.json has changed"
    edit_weights(broken, lambda tensors: tensors[UP].mul_(2))
    assert open_skeleton(broken)[2].changed(earlier) == f"{UP} in model.safetensors has other values"
    edit_weights(broken, lambda tensors: tensors.update({"more": torch.zeros(3)}))
    assert "model.safetensors has " in str(open_skeleton(broken)[2].changed(earlier))
    model = open_skeleton(broken)[0]
    assert not any("more" in name for name in model.state_dict())


def test_files_that_come_or_go_are_named(sharded: Path, single: Path) -> None:
    shards, whole = open_skeleton(sharded)[2], open_skeleton(single)[2]
    first = min(path.name for path in sharded.glob("*.safetensors"))
    assert shards.changed(whole.fingerprint()) == f"{first} was not a weight file of the model"
    assert whole.changed(shards.fingerprint()) == f"{first} is no longer a weight file of the model"
