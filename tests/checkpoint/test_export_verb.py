"""`channelwise export`: what people and programs read of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from channelwise import recipe
from channelwise.cli.export import export
from tests.checkpoint.exports import InputError, need_library, quantized
from tests.checkpoint.test_export_models import KINDS

need_library()


def test_one_line_says_what_was_written_and_remarks_go_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = quantized("opt", KINDS["static at 6 bits"], tmp_path / "ours")
    export(str(ours), format="compressed-tensors", output=tmp_path / "theirs")
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    assert "theirs: compressed-tensors, " in shown.out and shown.out.endswith("kB\n")
    assert "note: vLLM has no kernel for 6-bit weights with 6-bit inputs" in shown.err


def test_json_has_the_remarks_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = quantized("opt", KINDS["shifted"], tmp_path / "ours", tmp_path / "source")
    export(str(ours), format="fp", output=tmp_path / "fp", source=str(tmp_path / "source"), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "fp" and found["notes"] == []
    assert found["bytes"] == (tmp_path / "fp" / "model.safetensors").stat().st_size


def test_the_list_tells_of_every_recipe(
    shared: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "recipe_names", lambda: ["rtn-w8a8", "os-plus-w8a8", "minmax-fp4-w4a4"])
    export(str(shared("models/tinystories-656k")), list_recipes=True, as_json=True)
    found = json.loads(capsys.readouterr().out)["compressed-tensors"]
    assert found["rtn-w8a8"] is None
    assert "--set stream.method.shift=never" in found["os-plus-w8a8"]
    assert "E2M1" in found["minmax-fp4-w4a4"]
    export(str(shared("models/tinystories-656k")), list_recipes=True)
    table = capsys.readouterr().out
    assert "rtn-w8a8" in table and "yes" in table and "no:" in table


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "--format"),
        ({"format": "fp"}, "--output"),
        ({"format": "gguf", "output": "x"}, "gguf"),
        ({"format": "fp", "output": "x"}, "--source"),
        ({"format": "compressed-tensors", "output": "x", "source": "y"}, "--source goes with"),
        ({"list_recipes": True, "format": "fp"}, "--list"),
    ],
)
def test_usage_errors_say_what_to_do(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    ours = quantized("opt", KINDS["static"], tmp_path / "ours")
    if "output" in options:
        options = {**options, "output": tmp_path / "x"}
    with pytest.raises(InputError, match=reason):
        export(str(ours), **options)
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_is_not_overwritten_by_its_own_export(tmp_path: Path) -> None:
    ours = quantized("opt", KINDS["static"], tmp_path / "ours")
    with pytest.raises(InputError, match="itself"):
        export(str(ours), format="compressed-tensors", output=ours, overwrite=True)
