"""What the public API is given, opened: models by directory, name or object; devices; calibration batches."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from channelwise.checkpoint.loader import is_checkpoint, load_checkpoint
from channelwise.engine.keeping import InPlace
from channelwise.errors import InputError, NotStreamableError
from channelwise.model.batches import Batch, Data, accepted, calibration_batches, length_limit, window_length
from channelwise.model.experts import unfuse_experts
from channelwise.model.images import Images
from channelwise.model.loading import load_model
from channelwise.model.pixels import load_processor
from channelwise.model.skeleton import can_stream, open_skeleton
from channelwise.model.sources import model_directory
from channelwise.model.streaming import WeightStream
from channelwise.recipe import CalibrationRecipe

CPU = torch.device("cpu")
ModelSource = str | Path | torch.nn.Module


@dataclass(frozen=True)
class StreamedWeights:
    """A model's weights from its files, part by part, on a device (`engine.keeping.Weights`).

    Each part goes to the device once, when its turn comes.
    """

    stream: WeightStream
    model: torch.nn.Module
    device: torch.device
    streamed: bool = True

    def load(self, name: str) -> None:
        """Puts a part's weights in place."""
        self.stream.load(name)
        if self.device.type != "cpu":
            for module in self.model.get_submodule(name).modules():
                _move(module, self.device)

    def release(self, name: str) -> None:
        """Back to the meta device."""
        self.stream.release(name)


def _move(module: torch.nn.Module, device: torch.device) -> None:
    """Moves the module's own tensors, if there is anything in them."""
    for parameter in module.parameters(recurse=False):
        if not parameter.is_meta:
            parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        if not buffer.is_meta:
            module._buffers[name] = buffer.to(device)


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, and its tokenizer or None.

    source: what it was opened from. given_processor: the caller's image processor, if any. weights: where a walk gets
    them from; of a streamed model they are on the meta device.
    """

    source: ModelSource
    model: torch.nn.Module
    tokenizer: Any
    given_processor: Any = None
    device: torch.device = CPU
    weights: "InPlace | StreamedWeights" = field(default_factory=InPlace)

    def processor(self) -> Any:
        """The given image processor, or the one beside the model, or None. Raises InputError for a damaged one."""
        if self.given_processor is not None or isinstance(self.source, torch.nn.Module):
            return self.given_processor
        return load_processor(self.source)

    def name(self) -> str:
        """What a model card calls the source."""
        if isinstance(self.source, torch.nn.Module):
            config = getattr(self.source, "config", None)
            return getattr(config, "_name_or_path", "") or type(self.source).__name__
        return str(self.source)

    def calibration(
        self, data: Data, defaults: CalibrationRecipe, samples: int | None, length: int | None, seed: int
    ) -> list[Batch]:
        """Batches on the model's device. samples, length: None takes the defaults. Raises InputError for unfit data."""
        batches = calibration_batches(
            data,
            self.tokenizer,
            self.model,
            samples=defaults.samples if samples is None else samples,
            length=window_length(length, defaults.length, length_limit(self.model, self.tokenizer)),
            seed=seed,
            processor=self.processor() if isinstance(data, Images) else None,
        )
        return [accepted(self.model, batch, self.device) for batch in batches]


def opened(
    source: ModelSource,
    device: str,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    allow_quantized: bool = False,
    dtype: str | torch.dtype = "auto",
) -> Opened:
    """A model by directory, hub name, "demo", or itself. tokenizer, processor: instead of its own.

    dtype: of what is loaded and not quantized; "auto" is the one it was saved in.
    Raises InputError for what cannot be loaded, a device that is not there, and a quantized model unless allowed.
    """
    place = _device(device)
    if isinstance(source, torch.nn.Module):
        model, own = source, None
    elif allow_quantized and is_checkpoint(Path(source)):
        model, own = load_checkpoint(Path(source), dtype)
    else:
        model, own = load_model(source, dtype, allow_quantized=allow_quantized)
    return Opened(source, model.to(place).eval(), own if tokenizer is None else tokenizer, processor, place)


def opened_to_quantize(source: ModelSource, device: str, *, tokenizer: Any = None, processor: Any = None) -> Opened:
    """As `opened`, in floating point, with every expert a module of its own."""
    found = opened(source, device, tokenizer=tokenizer, processor=processor)
    unfuse_experts(found.model)
    return found


def opened_to_stream(source: str | Path, device: str, *, tokenizer: Any = None) -> Opened:
    """As `opened_to_quantize`, with nothing but its weights' shapes in memory; experts are still fused.

    Raises NotStreamableError for a model that has to be loaded whole.
    """
    place = _device(device)
    if not can_stream(model_directory(str(source))):
        raise NotStreamableError(f"{source} does not hold its weights as safetensors alone")
    model, own, stream = open_skeleton(source)
    weights = StreamedWeights(stream, model, place)
    return Opened(source, model, own if tokenizer is None else tokenizer, None, place, weights)


def _device(name: str) -> torch.device:
    """The device of this name. Raises InputError if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used on this machine; give another, cpu say") from error
    return device
