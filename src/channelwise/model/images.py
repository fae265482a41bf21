"""Reading people's images: a folder with a sub-folder for each label, a flat folder, or a .npz; decoded when needed."""

import importlib.util
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from channelwise.errors import InputError
from channelwise.model.sources import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files in a folder that are images; others, and hidden ones, are left alone."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images and where they came from.

    source: for messages. items: never empty, files or an array of numbers [N, H, W], [N, H, W, C] or [N, C, H, W].
    labels: one per item, where there are any.
    """

    source: str
    items: tuple[Path, ...] | np.ndarray
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def place(self, index: int) -> str:
        """Where the label of the item stands, for messages."""
        item = self.items[index]
        return f"sub-folder {self.labels[index]}" if isinstance(item, Path) and self.labels else f"labels[{index}]"


def names_images(source: object) -> TypeGuard[str | Path]:
    """Whether this names images rather than a text: a folder or a .npz."""
    return isinstance(source, str | Path) and (Path(source).suffix.lower() == ".npz" or Path(source).is_dir())


def read_images(source: str | Path | Images) -> Images:
    """Images of a folder, at any depth, or of a .npz with the array `images` and perhaps `labels`.

    In a folder, each sub-folder is a label, if all the images lie in one. Files are listed in the order of their names.
    Raises InputError for: a missing path, a folder or array without images, arrays of other shapes or of Python
    objects, labels of another number, a damaged .npz.
    """
    if isinstance(source, Images):
        return source
    path = Path(source)
    if not path.exists():
        raise InputError(f"no such folder or file: {path}; give a folder of images, or a .npz")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path} is neither a folder nor a .npz; give a folder of images, or a .npz of them")
    return _from_npz(path)


def read_labelled_images(source: str | Path | Images) -> Images:
    """As `read_images`. Raises InputError also where an image has no label, and for a sub-folder without images."""
    images = read_images(source)
    if images.labels is None and isinstance(images.items, np.ndarray):
        raise InputError(f'{images.source} has no array "labels", which accuracy needs; add one label per image')
    if images.labels is None:
        loose = sum(path.parent == Path(images.source) for path in images.items)
        raise InputError(
            f"{images.source} has {loose} of {len(images)} images in no sub-folder; "
            "accuracy needs a sub-folder for each label, with its images in it"
        )
    if not isinstance(images.items, np.ndarray):
        empty = sorted(set(_folders(Path(images.source))) - set(images.labels))
        if empty:
            raise InputError(f"the sub-folder {empty[0]} of {images.source} has no images; add some, or remove it")
    return images


def check_images(images: Images, places: Iterable[int] | None = None) -> None:
    """Decodes all the files, or those at the places. Raises InputError with how many are broken, and the first one.

    Broken ones are not skipped: the accuracy would be of other images than the ones that were given.
    """
    if isinstance(images.items, np.ndarray):
        return
    need_pillow()
    paths = images.items if places is None else [images.items[place] for place in places]
    broken = [(path, reason) for path in paths if (reason := _defect(path))]
    if broken:
        (first, reason), them = broken[0], "it" if len(broken) == 1 else "them"
        raise InputError(
            f"{len(broken)} of {len(paths)} images cannot be read, first {first} ({reason}); remove or replace {them}"
        )


def decoded(images: Images, places: Sequence[int], mode: str) -> list["Image"]:
    """The images at the places, upright, in a mode of Pillow: "RGB", "L", "RGBA".

    An array must be uint8 [N, H, W] or [N, H, W, C]. Raises InputError for a file that cannot be read.
    """
    from PIL import Image, ImageOps

    if isinstance(images.items, np.ndarray):
        return [Image.fromarray(np.ascontiguousarray(images.items[place])).convert(mode) for place in places]
    found = []
    for place in places:
        try:
            with Image.open(images.items[place]) as image:
                found.append(ImageOps.exif_transpose(image).convert(mode))
        except Exception as error:  # Pillow's readers raise many kinds
            raise InputError(
                f"{images.items[place]} cannot be read ({one_line(error)}); remove or replace it"
            ) from error
    return found


def need_pillow() -> None:
    """Raises InputError where Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise InputError('reading images needs Pillow; `pip install "channelwise[images]"`')


def _from_folder(folder: Path) -> Images:
    try:
        named = _folders(folder)
        loose = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; give a readable folder of images") from error
    labelled = [(path, name) for name in named for path in sorted((folder / name).rglob("*")) if _is_image(path)]
    if not loose and not labelled:
        raise InputError(f"{folder} has no images ({', '.join(SUFFIXES[:3])}, …) in it; give a folder of images")
    items = (*loose, *(path for path, _ in labelled))
    return Images(str(folder), items, None if loose else tuple(name for _, name in labelled))


def _folders(folder: Path) -> list[str]:
    """Names of the sub-folders that are not hidden."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _from_npz(path: Path) -> Images:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is cut short, or no .npz; write it again with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {name: archive[name] for name in ("images", "labels") if name in names}
    except Exception as error:  # numpy, zipfile and zlib each have errors of their own
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); write plain arrays of numbers with numpy.savez"
        ) from error
    if "images" not in arrays:
        raise InputError(f'{path} has no array "images" (it has: {", ".join(names) or "none"}); name one "images"')
    images = _checked_array(arrays["images"], path)
    labels = _labels_of(arrays["labels"], len(images), path) if "labels" in arrays else None
    return Images(str(path), images, labels)


def _checked_array(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim not in (3, 4) or array.dtype.kind not in "uif" or array.size == 0:
        raise InputError(
            f"{path}: images is an array {list(array.shape)} of {array.dtype}; "
            "give numbers [N, H, W], [N, H, W, C] or [N, C, H, W], at least one image"
        )
    return array


def _labels_of(array: np.ndarray, count: int, path: Path) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise InputError(
            f"{path}: labels is an array {list(array.shape)} of {array.dtype}; give one name or class number per image"
        )
    if len(array) != count:
        raise InputError(f"{path} has {count} images, but {len(array)} labels; give one label per image")
    return tuple(str(label) for label in array.tolist())


def _defect(path: Path) -> str:
    """Why the file cannot be decoded; empty if it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.draft("L", (1, 1))  # reads all of a JPEG, but computes little of it
            image.load()
    except UnidentifiedImageError:
        return "it is no image"
    except Exception as error:  # Pillow's readers raise many kinds
        return one_line(error)
    return ""
