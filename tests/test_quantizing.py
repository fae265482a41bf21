"""Models quantized into checkpoints: streamed or whole, in one go or in several, the same bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from channelwise import api
from channelwise.checkpoint.writer import RECORD_FILE, save_checkpoint
from channelwise.engine.walk import quantize_model
from channelwise.errors import InputError
from channelwise.methods import none
from channelwise.model.skeleton import open_skeleton
from channelwise.opening import opened_to_quantize
from channelwise.quantizing import stored_record
from channelwise.recipe import CalibrationRecipe
from channelwise.runtime.linear import QuantizedLinear
from tests import written
from tests.written import IDS, contents, left, models, one_thread, quantize, stopping_at

__all__ = ["models", "one_thread"]


def without_run(files: dict[str, bytes]) -> dict[str, Any]:
    """The files of a checkpoint, but for what only a run has to say of itself."""
    record = json.loads(files[RECORD_FILE])
    record.pop("run", None)
    return {**files, RECORD_FILE: json.dumps(record)}


class TestStreamed:
    @pytest.mark.parametrize(
        ("model", "recipe"),
        [
            ("llama", "rtn-w8a8"),
            ("llama", "os-plus-w6a6"),
            ("llama", "gptq-ada-w3g128"),
            ("llama", "llm-fp4-w4a4"),
            ("opt", "os-plus-w6a6"),
            ("opt", "llm-fp4-w4a4"),
            ("mixtral", "outliertune-w8a8"),
            ("mixtral", "gptq-ada-w3g128"),
            ("gemma3", "rtn-w8a8"),
            ("gemma3", "llm-fp4-w4a4"),
        ],
    )
    def test_a_model_gives_the_bytes_of_one_that_is_whole_in_memory(
        self, model: str, recipe: str, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        result = quantize(models(model), tmp_path / "streamed", recipe)
        assert any(parameter.is_meta for parameter in result.skeleton.parameters())
        chosen = written.recipe(recipe)
        whole = opened_to_quantize(models(model), "cpu")
        batches = whole.calibration(IDS, CalibrationRecipe(), len(IDS), None, 0)
        assert len(batches) > 1
        record = quantize_model(whole.model, batches, chosen.to_plan())
        save_checkpoint(
            whole.model,
            None,
            tmp_path / "whole",
            recipe=chosen.model_dump(mode="json"),
            source_name=str(models(model)),
            record=stored_record(record),
            overwrite=False,
        )
        assert without_run(contents(tmp_path / "streamed")) == without_run(contents(tmp_path / "whole"))

    def test_the_result_has_the_model_that_was_written(self, models: Callable[[str], Path], tmp_path: Path) -> None:
        result = quantize(models("llama"), tmp_path / "out")
        loaded, _ = api.load(tmp_path / "out")
        with torch.no_grad():
            assert torch.equal(result.model(IDS).logits, loaded(IDS).logits)
        assert result.after.model_bytes < result.before.model_bytes

    @pytest.mark.parametrize("memory", [0, 300_000])
    def test_hidden_states_on_disk_change_nothing(
        self, memory: int, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        quantize(models("opt"), tmp_path / "memory", "os-plus-w6a6")
        quantize(models("opt"), tmp_path / "disk", "os-plus-w6a6", activation_memory=memory)
        assert contents(tmp_path / "disk") == contents(tmp_path / "memory")

    def test_a_model_in_memory_is_quantized_in_its_place_and_written(
        self, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        quantize(models("llama"), tmp_path / "streamed")
        model = opened_to_quantize(models("llama"), "cpu").model
        for memory in (None, 0):
            if memory is not None:
                model = opened_to_quantize(models("llama"), "cpu").model
            result = quantize(model, tmp_path / str(memory), activation_memory=memory)
            assert result.model is model
            assert any(isinstance(module, QuantizedLinear) for module in model.modules())
            assert without_run(contents(tmp_path / str(memory))) == without_run(contents(tmp_path / "streamed"))


class TestWhole:
    """Models that cannot be streamed: loaded whole, and still resumed."""

    @pytest.fixture(params=["pickled", "importance", "images"])
    def run(self, request: pytest.FixtureRequest, models: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
        if request.param == "pickled":
            folder = Path(shutil.copytree(models("llama"), tmp_path / "pickled"))
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
            return lambda output, **more: quantize(folder, output, **more)
        if request.param == "importance":
            return lambda output, **more: quantize(models("bert"), output, "llm-fp4-w4a4", **more)
        pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return lambda output, **more: quantize(models("vit"), output, data=pixels, samples=6, **more)

    def test_gives_the_same_bytes_after_an_interruption(self, run: Callable[..., Any], tmp_path: Path) -> None:
        run(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", progress=stopping_at("block 2"))
        result = run(tmp_path / "out", resume=True)
        assert result.resumed == 1
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert result.model is not result.skeleton


@pytest.fixture(scope="module")
def stopped(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a run into `out` left, which was interrupted behind its first block."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        quantize(models("wide"), folder / "out", progress=stopping_at("block 2"))
    return folder


@pytest.fixture
def unfinished(stopped: Path, tmp_path: Path) -> Path:
    """The DIR of such a run."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run" / "out"


@pytest.fixture(scope="module")
def finished(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DIR of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    quantize(models("wide"), output)
    return output


def with_changed_weight(model: Path, copy: Path, tensor: str) -> Path:
    """A copy of a model with one other value, which a look at a few pages of the tensor does not show."""
    shutil.copytree(model, copy)
    path = copy / "model.safetensors"
    tensors = load_file(path)
    flat = tensors[tensor].view(-1)
    assert flat.nbytes > 12 * 1024
    flat[len(flat) // 2 + 1] += 1.0
    save_file(tensors, path, metadata={"format": "pt"})
    assert open_skeleton(copy)[2].changed(open_skeleton(model)[2].fingerprint()) is None
    return copy


def with_changed_config(model: Path, copy: Path) -> Path:
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    return copy


def with_other_norm(model: Path, copy: Path) -> Path:
    shutil.copytree(model, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][5] = 2.0
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


class TestResumed:
    @pytest.mark.parametrize("recipe", ["outliertune-w8a8", "gptq-ada-w3g128", "llm-fp4-w4a4"])
    @pytest.mark.parametrize("stop", ["block 2", "output layer"])
    def test_gives_the_bytes_of_a_run_that_was_not_interrupted(
        self, recipe: str, stop: str, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        if stop == "output layer" and "llm-fp4" not in recipe:
            stop = "done"
        quantize(models("opt"), tmp_path / "whole", recipe)
        with pytest.raises(KeyboardInterrupt):
            quantize(models("opt"), tmp_path / "out", recipe, progress=stopping_at(stop))
        result = quantize(models("opt"), tmp_path / "out", recipe, resume=True, activation_memory=0)
        assert result.resumed == {"block 2": 1, "output layer": 2, "done": 3}[stop]
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert not left(tmp_path / "out").exists()

    def test_of_a_mixture_of_experts_too(self, models: Callable[[str], Path], tmp_path: Path) -> None:
        quantize(models("mixtral"), tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            quantize(models("mixtral"), tmp_path / "out", progress=stopping_at("block 2"))
        quantize(models("mixtral"), tmp_path / "out", resume=True)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_by_another_path_to_the_same_model_and_recipe_goes_on(
        self, unfinished: Path, models: Callable[[str], Path], finished: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(models("wide"), tmp_path / "copy"))
        assert quantize(copy, unfinished, resume=True).resumed == 1
        weights = "model.safetensors"
        assert (unfinished / weights).read_bytes() == (finished / weights).read_bytes()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"settings": ("weights.bits=6",)}, r"the recipe's weights\.bits was 8 and is 6;"),
            ({"seed": 3}, r"the seed was 0 and is 3;"),
            ({"data": IDS.flip(0)}, r"the calibration data has changed;"),
            ({"samples": 7}, r"the calibration data has changed;"),
            (
                {"settings": ("inner.inputs.bits=4",), "seed": 3},
                r"the recipe's inner\.inputs\.bits was 8 and is 4; the seed was",
            ),
        ],
    )
    def test_of_another_run_is_refused_with_the_difference(
        self, change: dict[str, Any], told: str, unfinished: Path, models: Callable[[str], Path]
    ) -> None:
        before = contents(left(unfinished))
        settings = change.pop("settings", ())
        with pytest.raises(InputError, match=f"was another one: {told}"):
            quantize(models("wide"), unfinished, "rtn-w8a8", *settings, resume=True, **change)
        assert contents(left(unfinished)) == before
        assert not unfinished.exists()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (with_changed_config, r"another one: config\.json has changed;"),
            (
                with_other_norm,
                r"another one: model\.layers\.1\.input_layernorm\.weight in \S+ has other values;",
            ),
            (
                lambda model, copy: with_changed_weight(model, copy, "model.layers.0.mlp.up_proj.weight"),
                r"the weights of model\.layers\.0 have changed since the run began.*--overwrite",
            ),
            (
                lambda model, copy: with_changed_weight(model, copy, "model.embed_tokens.weight"),
                r"another one: what is outside the model's blocks has other values;",
            ),
        ],
    )
    def test_of_another_model_is_refused_with_the_difference(
        self,
        change: Callable[[Path, Path], Path],
        told: str,
        unfinished: Path,
        models: Callable[[str], Path],
        tmp_path: Path,
    ) -> None:
        before = contents(left(unfinished))
        with pytest.raises(InputError, match=told):
            quantize(change(models("wide"), tmp_path / "changed"), unfinished, resume=True)
        assert contents(left(unfinished)) == before
        assert not unfinished.exists()

    def test_of_a_model_that_is_loaded_whole_is_refused_after_any_change(
        self, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        model = opened_to_quantize(models("llama"), "cpu").model
        with pytest.raises(KeyboardInterrupt):
            quantize(model, tmp_path / "out", progress=stopping_at("block 2"))
        other = opened_to_quantize(models("llama"), "cpu").model
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
        with pytest.raises(InputError, match="another one: the model has changed;"):
            quantize(other, tmp_path / "out", resume=True)

    def test_when_all_is_done_tells_the_same_and_changes_nothing(
        self, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        first = quantize(models("wide"), tmp_path / "out")
        before = contents(tmp_path / "out")
        again = quantize(models("wide"), tmp_path / "out", resume=True)
        assert again.resumed == 3
        assert again.record.sites == first.record.sites
        assert (again.before, again.after) == (first.before, first.after)
        assert contents(tmp_path / "out") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_after_a_method_of_ones_own_has_changed_is_refused(
        self, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        body = Path(none.__file__).read_text(encoding="utf-8")
        method = tmp_path / "of_ones_own.py"
        method.write_text(body, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        settings = ("stream.method={name: 'of_ones_own:NoTransform'}",)
        with pytest.raises(KeyboardInterrupt):
            quantize(models("llama"), tmp_path / "out", "rtn-w8a8", *settings, progress=stopping_at("block 2"))
        method.write_text(f"{body}# other words\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"the recipe's files\.of_ones_own:NoTransform has changed"):
            quantize(models("llama"), tmp_path / "out", "rtn-w8a8", *settings, resume=True)


class TestUnfinished:
    def test_a_run_without_resume_is_refused_with_how_far_the_other_got(
        self, unfinished: Path, models: Callable[[str], Path]
    ) -> None:
        before = contents(left(unfinished))
        with pytest.raises(InputError, match=r"1 stage finished, model\.layers\.0 the last.*--resume.*--overwrite"):
            quantize(models("wide"), unfinished)
        assert contents(left(unfinished)) == before

    def test_overwrite_starts_again(self, unfinished: Path, models: Callable[[str], Path], finished: Path) -> None:
        result = quantize(models("wide"), unfinished, overwrite=True)
        assert result.resumed == 0
        assert contents(unfinished) == contents(finished)
        assert not left(unfinished).exists()

    def test_an_older_checkpoint_stays_until_the_new_one_is_whole(
        self, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        output = tmp_path / "out"
        quantize(models("llama"), output)
        older = contents(output)
        options = {"overwrite": True, "resume": True}
        with pytest.raises(KeyboardInterrupt):
            quantize(models("llama"), output, "rtn-w6a6", progress=stopping_at("done"), **options)
        assert contents(output) == older
        assert quantize(models("llama"), output, "rtn-w6a6", **options).resumed == 3
        assert contents(output) != older

    def test_two_runs_into_one_directory_are_refused_in_one_line(
        self, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        refused: list[str] = []

        def meanwhile(label: str, done: int, total: int) -> None:
            for options in ({}, {"resume": True}, {"overwrite": True}):
                if label.startswith("block 2"):
                    with pytest.raises(InputError) as error:
                        quantize(models("llama"), tmp_path / "out", **options)
                    refused.append(str(error.value))

        quantize(models("llama"), tmp_path / "out", progress=meanwhile)
        assert len(refused) == 3
        assert all("another process is writing" in line and "\n" not in line for line in refused)
        assert (tmp_path / "out" / "config.json").exists()
