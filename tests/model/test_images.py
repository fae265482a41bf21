"""Images listed from folders and .npz files, with every defect named."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from channelwise.errors import InputError
from channelwise.model.images import (
    Images,
    check_images,
    decoded,
    names_images,
    need_pillow,
    read_images,
    read_labelled_images,
)
from tests.cli import tiny

PIXELS = tiny.pictures(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.image_folder(tmp_path / "shapes", ["star", "circle", "star", "square"])


def npz(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """The file's beginning only."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


class TestFolders:
    def test_each_sub_folder_is_a_label(self, folder: Path) -> None:
        images = read_labelled_images(folder)
        assert [path.name for path in images.items] == ["001.png", "003.png", "000.png", "002.png"]
        assert images.labels == ("circle", "square", "star", "star")
        assert images.place(1) == "sub-folder square"

    def test_images_may_lie_deeper(self, folder: Path) -> None:
        (folder / "star" / "more").mkdir()
        (folder / "star" / "000.png").rename(folder / "star" / "more" / "000.PNG")
        assert read_labelled_images(folder).labels == ("circle", "square", "star", "star")

    def test_other_and_hidden_files_are_no_images(self, folder: Path) -> None:
        (folder / ".cache").mkdir()
        for name in ("notes.txt", "star/list.csv", "star/.hidden.png", ".cache/a.png"):
            (folder / name).write_text("no image")
        assert len(read_labelled_images(folder)) == 4

    def test_a_flat_folder_is_for_calibration_only(self, folder: Path) -> None:
        images = read_images(folder / "star")
        assert len(images) == 2 and images.labels is None
        with pytest.raises(InputError, match="2 of 2 images in no sub-folder"):
            read_labelled_images(folder / "star")

    def test_an_image_beside_the_sub_folders_has_no_label(self, folder: Path) -> None:
        (folder / "star" / "000.png").rename(folder / "000.png")
        assert len(read_images(folder)) == 4
        with pytest.raises(InputError, match="1 of 4 images in no sub-folder"):
            read_labelled_images(folder)

    def test_a_label_without_images(self, folder: Path) -> None:
        (folder / "triangle").mkdir()
        with pytest.raises(InputError, match=r"sub-folder triangle of .* has no images"):
            read_labelled_images(folder)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "star").mkdir()
        with pytest.raises(InputError, match="has no images"):
            read_images(tmp_path)


class TestNpz:
    @pytest.mark.parametrize("labels", [[0, 2, 1, 0], ["0", "2", "1", "0"]])
    def test_images_and_labels(self, tmp_path: Path, labels: list) -> None:
        images = read_labelled_images(npz(tmp_path, images=PIXELS, labels=labels))
        assert np.array_equal(images.items, PIXELS)
        assert images.labels == ("0", "2", "1", "0")
        assert images.place(2) == "labels[2]"

    def test_labels_are_only_needed_for_accuracy(self, tmp_path: Path) -> None:
        path = npz(tmp_path, images=PIXELS)
        assert read_images(path).labels is None
        with pytest.raises(InputError, match='no array "labels"'):
            read_labelled_images(path)

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"x": PIXELS}, r'no array "images" \(it has: x\)'),
            ({"images": PIXELS[0, 0]}, r"\[20, 3\] of uint8"),
            ({"images": PIXELS[:0]}, "at least one image"),
            ({"images": PIXELS > 3}, "of bool"),
            ({"images": PIXELS.astype("U3")}, "of <U3"),
            ({"images": PIXELS, "labels": [0, 1, 2]}, "4 images, but 3 labels"),
            ({"images": PIXELS, "labels": [0.5, 1, 2, 1]}, "one name or class number per image"),
            ({"images": PIXELS, "labels": [[0], [1], [2], [0]]}, r"\[4, 1\] of int64"),
            ({"images": np.array([{}, 3], dtype=object)}, "allow_pickle=False"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, arrays: dict, said: str) -> None:
        path = npz(tmp_path, **arrays)
        with pytest.raises(InputError, match=said) as error:
            read_images(path)
        assert str(path) in str(error.value)

    def test_a_file_that_is_cut_short(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cut short"):
            read_images(cut(npz(tmp_path, images=PIXELS)))

    def test_a_file_with_changed_bytes(self, tmp_path: Path) -> None:
        path = npz(tmp_path, images=PIXELS)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"images.npz cannot be read"):
            read_images(path)


class TestDefects:
    def test_broken_files_are_counted_and_the_first_is_named(self, folder: Path) -> None:
        cut(folder / "circle" / "001.png")
        (folder / "star" / "000.png").write_text("no image")
        with pytest.raises(
            InputError, match=r"2 of 4 images cannot be read, first .*001.png \(.+\); remove or replace"
        ):
            check_images(read_images(folder))

    def test_a_file_that_is_no_image(self, folder: Path) -> None:
        (folder / "circle" / "001.png").write_bytes(b"")
        with pytest.raises(InputError, match=r"1 of 4 .*001.png \(it is no image\); remove or replace it"):
            check_images(read_images(folder))

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
    def test_every_cut_file_is_found(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"image{suffix}"
        Image.fromarray(PIXELS[0].repeat(8, 0).repeat(8, 1)).save(path)
        images = read_images(tmp_path)
        check_images(images)
        cut(path, 0.8)
        with pytest.raises(InputError, match="1 of 1"):
            check_images(images)

    def test_only_the_files_at_the_places_are_looked_at(self, folder: Path) -> None:
        (folder / "circle" / "001.png").write_text("no image")
        images = read_images(folder)
        check_images(images, [1, 2, 3])
        with pytest.raises(InputError, match="1 of 2"):
            check_images(images, [0, 3])

    def test_a_file_that_breaks_later_is_named(self, folder: Path) -> None:
        images = read_images(folder)
        (folder / "circle" / "001.png").unlink()
        with pytest.raises(InputError, match=r"001.png cannot be read"):
            decoded(images, [0], "RGB")

    def test_an_array_has_no_files_to_break(self) -> None:
        check_images(Images("array", PIXELS))

    def test_missing_paths_and_other_files(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such folder or file"):
            read_images(tmp_path / "gone")
        (tmp_path / "a.zip").write_bytes(b"zip")
        with pytest.raises(InputError, match=r"neither a folder nor a \.npz"):
            read_images(tmp_path / "a.zip")

    def test_without_pillow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        need_pillow()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r'pip install "channelwise\[images\]"'):
            need_pillow()


def test_files_are_decoded_upright_in_the_mode_asked_for(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS[0])
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated by 270°
    image.save(tmp_path / "turned.png", exif=exif)
    (found,) = decoded(read_images(tmp_path), [0], "RGB")
    assert np.array_equal(np.asarray(found), np.rot90(PIXELS[0], 3))
    assert decoded(read_images(tmp_path), [0], "L")[0].mode == "L"


def test_a_folder_or_an_npz_names_images(tmp_path: Path) -> None:
    assert names_images(tmp_path) and names_images(str(tmp_path)) and names_images("gone.npz")
    assert not names_images("gone") and not names_images("a.txt") and not names_images(["a.npz"])
