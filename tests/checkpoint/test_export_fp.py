"""The transformed model in floating point computes what the original does, and other tools go on from there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise import api
from channelwise.checkpoint.exporting_directory import export_checkpoint
from tests.checkpoint.exports import InputError, loaded, need_library, quantized
from tests.checkpoint.test_export_models import KINDS, NONE, STATIC, W8, logits, recipe, relative
from tests.model.tiny_models import tiny_model

ROUNDING = torch.finfo(torch.float32).eps


def exported(name: str, chosen: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    ours = quantized(name, chosen, folder / "ours", folder / "source", dtype)
    return export_checkpoint(ours, format="fp", source=folder / "source", output=folder / "fp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["shifted", "per channel", "groups of odd width"])
@pytest.mark.parametrize("name", ["opt", "llama", "gpt2"])
def test_the_output_is_that_of_the_original(name: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    exported(name, KINDS[kind], tmp_path, dtype)
    original: Any = type(tiny_model(name)).from_pretrained(tmp_path / "source", dtype=torch.float32)
    # Every number of a folded site is rounded once more; the blocks pass that on some dozen times.
    assert relative(logits(loaded(tmp_path / "fp")), logits(original.eval())) < 64 * ROUNDING


def test_the_channels_are_evened_out(tmp_path: Path) -> None:
    """Min-max ranges per channel are one step wide behind the norm: what the quantizer did is in the model now."""
    exported("opt", KINDS["per channel"], tmp_path)
    seen: dict[str, torch.Tensor] = {}
    for folder in ("source", "fp"):
        model: Any = type(tiny_model("opt")).from_pretrained(tmp_path / folder, dtype=torch.float32).eval()
        layer = model.model.decoder.layers[1].self_attn.q_proj
        layer.register_forward_pre_hook(lambda _, args, folder=folder: seen.update({folder: args[0]}))
        logits(model)
    spread = {folder: x.flatten(0, 1).abs().amax(0) for folder, x in seen.items()}
    ratio = {folder: float(largest.max() / largest.min()) for folder, largest in spread.items()}
    assert ratio["fp"] < ratio["source"] / 2


def test_sites_that_keep_their_input_are_named(tmp_path: Path) -> None:
    notes = exported("llama", KINDS["shifted"], tmp_path).notes
    assert len(notes) == 4
    assert all("keeps its shift" in note and "has no bias" in note for note in notes)


@pytest.mark.parametrize("what", ["another", "same sizes", "no transform", "no source", "not quantized", "experts"])
def test_what_does_not_fit_is_refused_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    chosen = recipe(W8, NONE, STATIC) if what == "no transform" else KINDS["smoothed"]
    ours = quantized("mixtral" if what == "experts" else "llama", chosen, tmp_path / "ours", tmp_path / "source")
    source: Path | None = tmp_path / "source"
    if what == "another":
        tiny_model("opt", torch.float32).save_pretrained(tmp_path / "opt")  # type: ignore[operator]
        source = tmp_path / "opt"
    if what == "same sizes":
        other: Any = tiny_model("llama", torch.float32)
        other.model.norm.weight.data += 1.0
        other.save_pretrained(source)
    if what == "no source":
        source = None
    directory = tmp_path / "source" if what == "not quantized" else ours
    reasons = {"another": "no linear layer", "same sizes": "model.norm.weight", "no transform": "nothing to fold",
               "no source": "--source", "not quantized": "quantize", "experts": "experts"}  # fmt: skip
    with pytest.raises(InputError, match=reasons[what]):
        export_checkpoint(directory, format="fp", source=source, output=tmp_path / "fp")
    assert not (tmp_path / "fp").exists()


def test_another_tool_quantizes_it_further(tmp_path: Path) -> None:
    """Round to nearest by compressed-tensors loses less on the evened-out model than on the original."""
    need_library()
    inputs = {"bits": 8, "granularity": "channel"}
    exported("opt", recipe(W8, {"name": "outliertune"}, inputs, {"method": NONE, "inputs": STATIC}), tmp_path)
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.quant_args import QuantizationArgs

    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=8, strategy="channel"),
        input_activations=QuantizationArgs(num_bits=6, strategy="tensor", dynamic=True),
    )
    config = QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"], quantization_status="frozen")
    losses = {}
    for folder in ("source", "fp"):
        model: Any = type(tiny_model("opt")).from_pretrained(tmp_path / folder, dtype=torch.float32).eval()
        expected = logits(model)
        apply_quantization_config(model, config)
        for module in model.modules():
            if hasattr(module, "weight_scale"):
                module.weight_scale.data = module.weight.abs().amax(1, keepdim=True) / 127.5
        losses[folder] = relative(logits(model), expected)
    assert 0.0 < losses["fp"] < losses["source"]


def test_api_load_refuses_what_is_not_ours(tmp_path: Path) -> None:
    exported("llama", KINDS["smoothed"], tmp_path)
    with pytest.raises(InputError, match="not a channelwise checkpoint"):
        api.load(tmp_path / "fp")
