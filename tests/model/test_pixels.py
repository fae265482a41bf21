"""Pixel values by the model's own image processor, or as they are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from channelwise.errors import InputError
from channelwise.model import images as image_files
from channelwise.model.images import Images, read_images
from channelwise.model.pixels import load_processor, need_text_model, pixels_for
from tests.cli import tiny

PICTURES = tiny.pictures(5)
CHANNELS_FIRST = np.moveaxis(PICTURES, 3, 1)


@pytest.fixture(scope="module")
def vit() -> Any:
    return tiny.vit()


def taken(model: Any, array: np.ndarray, processor: Any = None) -> torch.Tensor:
    """Pixel values of all images of the array."""
    return pixels_for(model, Images("an array", array), processor or tiny.image_processor()).take(range(len(array)))


def refused(model: Any, array: np.ndarray, processor: Any) -> str:
    with pytest.raises(InputError) as error:
        pixels_for(model, Images("an array", array), processor).take([0])
    return str(error.value)


def test_the_models_own_processor_makes_them(vit: Any, tmp_path: Path) -> None:
    tiny.saved(vit, None, tmp_path)
    tiny.image_processor().save_pretrained(tmp_path)
    expected = tiny.image_processor()(images=list(PICTURES), return_tensors="pt")["pixel_values"]
    assert expected.shape == (5, 3, 16, 16)
    assert torch.equal(taken(vit, PICTURES, load_processor(tmp_path)), expected)


def test_files_and_arrays_of_the_same_images_are_the_same(vit: Any, tmp_path: Path) -> None:
    folder = tiny.image_folder(tmp_path, ["star"] * 5)
    files = pixels_for(vit, read_images(folder), tiny.image_processor()).take(range(5))
    assert torch.equal(files, taken(vit, PICTURES))


@pytest.mark.parametrize(
    "array",
    [
        CHANNELS_FIRST,
        PICTURES.astype(np.int64),
        PICTURES.astype(np.float64),
        PICTURES / 255.0,
        np.concatenate([PICTURES, np.full_like(PICTURES[..., :1], 255)], axis=-1),
    ],
    ids=["channels first", "integers", "floats to 255", "floats to 1", "opaque"],
)
def test_layouts_and_number_formats_say_the_same(vit: Any, array: np.ndarray) -> None:
    assert torch.equal(taken(vit, array), taken(vit, PICTURES))


@pytest.mark.parametrize("array", [PICTURES[..., 0], PICTURES[..., :1], CHANNELS_FIRST[:, :1]])
def test_grey_images_fill_all_channels(vit: Any, array: np.ndarray) -> None:
    assert torch.equal(taken(vit, array), taken(vit, PICTURES[..., :1].repeat(3, axis=-1)))


def test_a_model_of_one_channel_sees_grey(tmp_path: Path) -> None:
    model, processor = tiny.vit(num_channels=1), tiny.image_processor(channels=1)
    grey = PICTURES[..., 0]
    assert taken(model, grey, processor).shape == (5, 1, 16, 16)
    assert torch.equal(taken(model, grey[..., None].repeat(3, axis=-1), processor), taken(model, grey, processor))


def test_pixel_values_have_the_models_dtype(vit: Any) -> None:
    assert taken(tiny.vit().bfloat16(), PICTURES).dtype == torch.bfloat16


def test_batches_come_in_order_and_none_is_read_before(vit: Any, tmp_path: Path) -> None:
    folder = tiny.image_folder(tmp_path, ["star"] * 5)
    pixels = pixels_for(vit, read_images(folder), tiny.image_processor())
    batches = pixels.batches(2)
    assert torch.equal(next(batches), pixels.take([0, 1]))
    (folder / "star" / "004.png").unlink()
    assert torch.equal(next(batches), pixels.take([2, 3]))
    with pytest.raises(InputError, match=r"004.png"):
        next(batches)


class TestWithoutProcessor:
    def test_floats_of_the_models_shape_are_taken_as_they_are(self, vit: Any) -> None:
        array = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
        pixels = pixels_for(vit, Images("an array", array), None)
        assert torch.equal(pixels.take([2, 1]), torch.from_numpy(array[[2, 1]]))

    @pytest.mark.parametrize("shape", [(4, 3, 16, 12), (4, 1, 16, 16), (4, 16, 16, 3), (4, 16, 16)])
    def test_other_shapes_are_refused(self, vit: Any, shape: tuple[int, ...]) -> None:
        said = refused(vit, np.zeros(shape, dtype=np.float32), None)
        assert "preprocessor_config.json" in said and "[N, 3, 16, 16]" in said and str(list(shape)) in said

    def test_bytes_are_refused(self, vit: Any) -> None:
        assert "uint8" in refused(vit, np.zeros((4, 3, 16, 16), dtype=np.uint8), None)

    def test_numbers_that_are_not_finite_are_refused(self, vit: Any) -> None:
        assert "not finite" in refused(vit, np.full((4, 3, 16, 16), np.nan), None)

    def test_files_are_refused(self, vit: Any, tmp_path: Path) -> None:
        images = read_images(tiny.image_folder(tmp_path, ["star"]))
        with pytest.raises(InputError, match=r"preprocessor_config.json"):
            pixels_for(vit, images, None)


@pytest.mark.parametrize("array", [PICTURES - 128.0, PICTURES * 2.0, np.full(PICTURES.shape, np.nan)])
def test_numbers_that_are_no_brightness_are_refused(vit: Any, array: np.ndarray) -> None:
    assert "0 to 255" in refused(vit, array, tiny.image_processor())


def test_floats_to_1_are_refused_where_the_processor_expects_another_range(vit: Any) -> None:
    processor = tiny.image_processor()
    processor.rescale_factor = 1 / 16
    assert "0 to 16" in refused(vit, PICTURES / 255, processor)
    assert taken(vit, PICTURES % 17, processor).abs().max() <= 1


def test_an_array_without_an_axis_of_channels_is_refused(vit: Any) -> None:
    assert "no axis of 1, 3 or 4 channels" in refused(vit, PICTURES[:, :, :2].repeat(2, 3), tiny.image_processor())


def test_a_processor_of_another_model_is_named(vit: Any) -> None:
    assert "preprocessor_config.json" in refused(vit, PICTURES, tiny.image_processor(channels=1))
    sequences = lambda images, return_tensors: {"pixel_values": torch.zeros(len(images), 9, 48)}  # noqa: E731
    assert "[1, 9, 48]" in refused(vit, PICTURES, sequences)


def test_texts_and_images_are_told_apart(vit: Any) -> None:
    with pytest.raises(InputError, match="BertModel reads no images"):
        pixels_for(tiny.bert(), Images("cats.npz", PICTURES), None)
    with pytest.raises(InputError, match=r"reads images, but a.txt is text"):
        need_text_model(vit, "a.txt")
    need_text_model(SimpleNamespace(), "a.txt")  # type: ignore[arg-type]


def test_no_processor_beside_the_model(vit: Any, tmp_path: Path) -> None:
    assert load_processor(tiny.saved(vit, None, tmp_path)) is None


@pytest.mark.parametrize("content", ["{", json.dumps({"image_processor_type": "FutureImageProcessor"})])
def test_a_damaged_processor_is_named(vit: Any, tmp_path: Path, content: str) -> None:
    tiny.saved(vit, None, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=r"preprocessor_config.json cannot be loaded"):
        load_processor(tmp_path)


def test_a_processor_needs_pillow(vit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.saved(vit, None, tmp_path)
    tiny.image_processor().save_pretrained(tmp_path)
    monkeypatch.setattr(image_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"channelwise\[images\]"):
        load_processor(tmp_path)
