"""From images to the pixel values that a model takes, by its own image processor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from channelwise.errors import InputError
from channelwise.model.images import Images, decoded, need_pillow
from channelwise.model.loading import quiet
from channelwise.model.sources import model_directory, one_line

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for a number of channels."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images that become pixel values batch by batch, so that all of them never are in memory at once.

    processor: None takes an array as it is. channels: of the model. dtype: of the pixel values.
    """

    images: Images
    processor: Any
    channels: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.images)

    def take(self, places: Sequence[int]) -> torch.Tensor:
        """Pixel values [n, C, H, W] of the images at the places.

        Raises InputError for a file that cannot be read, and where the processor refuses an image or makes others of it
        than [C, H, W] of one size.
        """
        if self.processor is None:
            return torch.from_numpy(np.asarray(self.images.items)[list(places)]).to(self.dtype)
        pictures = decoded(self.images, places, MODES[self.channels])
        try:
            values = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        except Exception as error:  # whatever its file made it do
            raise InputError(
                f"the model's image processor cannot take the images of {self.images.source} ({one_line(error)}); "
                f"is {PROCESSOR_FILES[0]} the model's own?"
            ) from error
        if values.ndim != 4:
            raise InputError(f"{type(self.processor).__name__} makes {list(values.shape)} of images, not [N, C, H, W]")
        pixels: torch.Tensor = values.to(self.dtype)
        return pixels

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """All of them in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))


def pixels_for(model: torch.nn.Module, images: Images, processor: Any) -> Pixels:
    """The images as this model takes them.

    Without a processor, only an array of floats [N, C, H, W] of the model's size is: as it is. With one, an array holds
    0 to 255, or floats from 0 to 1. Raises InputError for other arrays, files without a processor, a text model.
    """
    need_image_model(model, images.source)
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    channels = getattr(config, "num_channels", 3)
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    if processor is None:
        _check_ready(images, channels, getattr(config, "image_size", None))
        return Pixels(images, None, channels, dtype)
    need_pillow()
    if channels not in MODES:
        raise InputError(f"{type(model).__name__} takes images of {channels} channels; only 1, 3 and 4 can be read")
    if isinstance(images.items, np.ndarray):
        images = replace(images, items=_channels_last(_bytes(images, processor), channels, images.source))
    return Pixels(images, processor, channels, dtype)


def load_processor(name: str | Path) -> Any:
    """The image processor beside a model, given by directory, hub name, or "demo"; None if there is none.

    Raises InputError for one that cannot be loaded, and without Pillow.
    """
    folder = model_directory(str(name))
    found = [folder / file for file in PROCESSOR_FILES if (folder / file).is_file()]
    if not found:
        return None
    need_pillow()
    try:
        with quiet():
            # Pillow's version of each, also where torchvision is installed: figures do not depend on that.
            return transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a wrong file makes it raise many kinds
        raise InputError(f"{found[0]} cannot be loaded as an image processor: {one_line(error)}") from error


def reads_images(model: torch.nn.Module) -> bool | None:
    """Whether a model's input is images; None if it does not say."""
    name = getattr(model, "main_input_name", None)
    return None if name is None else name == "pixel_values"


def need_image_model(model: torch.nn.Module, source: str) -> None:
    """Raises InputError where images are given to a model of texts or sounds."""
    if reads_images(model) is False:
        raise InputError(f"{type(model).__name__} reads no images, but {source} is images; give a text file instead")


def need_text_model(model: torch.nn.Module, source: str) -> None:
    """Raises InputError where a text is given to a model that reads images."""
    if reads_images(model):
        raise InputError(
            f"{type(model).__name__} reads images, but {source} is text; give a folder of images, or a .npz instead"
        )


def _check_ready(images: Images, channels: int, size: Any) -> None:
    """Raises InputError unless the images are an array of finite floats [N, C, H, W] of the model's shape."""
    array, beside = images.items, f"put the model's {PROCESSOR_FILES[0]} beside it, or pass a processor"
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else (None, None)
    if not isinstance(array, np.ndarray):
        raise InputError(f"the model has no image processor to read {images.source} with; {beside}")
    fits = array.ndim == 4 and all(
        want in (None, have) for want, have in zip((channels, *sides), array.shape[1:], strict=True)
    )
    if array.dtype.kind != "f" or not fits:
        wanted = ", ".join(str(side or "any") for side in (channels, *sides))
        raise InputError(
            f"{images.source} has images {list(array.shape)} of {array.dtype}, and the model no image processor; "
            f"{beside}; or give pixel values, floats [N, {wanted}]"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{images.source} has images with numbers that are not finite; mend them")


def _bytes(images: Images, processor: Any) -> np.ndarray:
    """The array in uint8, 0 to 255. Raises InputError for numbers beyond."""
    array = np.asarray(images.items)
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise InputError(
            f"{images.source} has images with numbers from {low:g} to {high:g}; "
            "give 0 to 255, or floats from 0 to 1: normalizing is the image processor's part"
        )
    if array.dtype.kind != "f" or high > 1:
        return np.rint(array).astype(np.uint8)
    factor = getattr(processor, "rescale_factor", None)
    if getattr(processor, "do_rescale", False) and factor is not None and abs(255 * factor - 1) > 1e-3:
        raise InputError(
            f"{images.source} has images from 0 to 1, but the model's image processor multiplies by {factor:g}; "
            f"give the numbers it is made for, 0 to {1 / factor:g}"
        )
    return np.rint(array * 255).astype(np.uint8)


def _channels_last(array: np.ndarray, channels: int, source: str) -> np.ndarray:
    """[N, H, W] for one channel, else [N, H, W, C]. Of two axes that could be channels, the one as in the model is."""
    if array.ndim == 3:
        return array
    last, first = array.shape[3] in MODES, array.shape[1] in MODES
    if not last and not first:
        raise InputError(f"{source}: images {list(array.shape)} have no axis of 1, 3 or 4 channels; give [N, H, W, C]")
    if first and (not last or array.shape[1] == channels):
        array = np.moveaxis(array, 1, 3)
    return array[..., 0] if array.shape[3] == 1 else array
