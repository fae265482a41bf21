"""Reading texts for people's files: .txt, .jsonl, .tsv, or a hub data set; every defect is named with its place."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from channelwise.errors import InputError

_SUFFIXES = (".txt", ".jsonl", ".tsv")


@dataclass(frozen=True)
class Texts:
    """Texts and where they came from.

    source: for messages. items: never empty, each not blank. is_stream: one running text (.txt), of which only windows
    make sense. labels: one per item, where the file has them. lines: their line numbers in it.
    """

    source: str
    items: tuple[str, ...]
    is_stream: bool = False
    labels: tuple[str, ...] | None = None
    lines: tuple[int, ...] | None = None

    def place(self, index: int) -> str:
        """Where the label of the item stands, for messages."""
        return f"labels[{index}]" if self.lines is None else f"line {self.lines[index]}"

    @property
    def stream(self) -> str:
        """All items as one running text, a blank line between two."""
        return "\n\n".join(self.items)


def read_texts(
    source: str | Path | Sequence[str] | Texts, *, bundled: Literal["calibration", "test"] = "calibration"
) -> Texts:
    """Texts of a file (.txt, .jsonl with the field `text`, .tsv with the column `text`), a list, or a hub data set.

    Any other suffix is read as .txt. The name "demo" stands for the text beside the bundled model that `bundled` says.
    Raises InputError, naming file and line or byte, for: a missing file, one that is not UTF-8 text, an empty one, a
    line without the field or column, and a hub name that cannot be loaded.
    """
    if isinstance(source, Texts):
        return source
    if not isinstance(source, str | Path):
        return _from_list(source)
    path = _bundled_path(bundled) if str(source) == "demo" else Path(source)
    if not path.exists() and path.suffix not in _SUFFIXES:
        return _from_hub(str(source))
    content = _decode(path)
    if path.suffix == ".jsonl":
        return _from_jsonl(path, content)
    if path.suffix == ".tsv":
        return _from_tsv(path, content)
    return Texts(str(path), (content,), is_stream=True)


def _bundled_path(name: str) -> Path:
    """The file beside the bundled model."""
    return Path(str(resources.files("channelwise") / "bundled" / f"{name}.txt"))


def _decode(path: Path) -> str:
    """The file's text. Raises InputError unless it is a readable file of UTF-8 text that is not blank."""
    if not path.exists():
        raise InputError(f"no such file: {path}; give a .txt, .jsonl or .tsv file")
    if path.is_dir():
        raise InputError(f"{path} is a directory; give a .txt, .jsonl or .tsv file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a readable text file") from error
    if (place := raw.find(b"\0")) >= 0:
        raise InputError(f"{path} is not text: byte {place} is zero; give a UTF-8 text file")
    try:
        content = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: invalid byte at offset {error.start}; convert it to UTF-8"
        ) from error
    if not content.strip():
        raise InputError(f"{path} is empty; give a file with text in it")
    return content


def _lines(content: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; only newlines end a line."""
    numbered = enumerate((line.rstrip("\r") for line in content.split("\n")), start=1)
    return [(number, line) for number, line in numbered if line.strip()]


def _from_jsonl(path: Path, content: str) -> Texts:
    """One JSON object a line, its field `text`."""
    items = []
    for number, line in _lines(content):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg}; each line is one JSON object") from error
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise InputError(f'{path}, line {number} has no field "text"; each line is {{"text": "..."}}')
        items.append(text)
    return _checked(str(path), items)


def _from_tsv(path: Path, content: str) -> Texts:
    """A header line, then one item a line; quotes are plain characters, as in GLUE's files."""
    (first, header), *rows = _lines(content)
    columns = header.split("\t")
    if "text" not in columns:
        raise InputError(f'{path}, line {first} has no column "text" (it has: {", ".join(columns)}); name one "text"')
    cells = []
    for number, line in rows:
        values = line.split("\t")
        if len(values) != len(columns):
            raise InputError(f"{path}, line {number} has {len(values)} columns, the header has {len(columns)}; mend it")
        cells.append(values)
    texts = [values[columns.index("text")] for values in cells]
    if "label" not in columns:
        return _checked(str(path), texts)
    labels = tuple(values[columns.index("label")] for values in cells)
    return _checked(str(path), texts, labels, tuple(number for number, _ in rows))


def _from_list(items: Sequence[str]) -> Texts:
    """A list of strings from the Python API."""
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"data[{index}] is {type(item).__name__}; give strings, or token ids as a tensor [N, L]")
    return _checked("the list of texts", list(items))


def _checked(
    source: str, items: list[str], labels: tuple[str, ...] | None = None, lines: tuple[int, ...] | None = None
) -> Texts:
    """Texts without blank items. Raises InputError where nothing is left."""
    kept = [index for index, item in enumerate(items) if item.strip()]
    if not kept:
        raise InputError(f"{source} has no text in it; give at least one text")
    chosen = tuple(items[index] for index in kept)
    if labels is None or lines is None:
        return Texts(source, chosen)
    return Texts(source, chosen, labels=tuple(labels[i] for i in kept), lines=tuple(lines[i] for i in kept))


def _from_hub(name: str) -> Texts:
    """The field `text` of a hub data set's training split, read with the optional package `datasets`."""
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            f"no such file: {name}; give a .txt, .jsonl or .tsv file, or `pip install datasets` to name a hub data set"
        )
    import datasets  # type: ignore[import-not-found, unused-ignore]

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # the library raises many kinds: missing, gated, offline, broken
        reason = " ".join(str(error).split())
        raise InputError(
            f"neither a file nor a hub data set that loads: {name} ({reason}); give a text file"
        ) from error
    if "text" not in rows.column_names:
        raise InputError(f'data set {name} has no field "text" (it has: {", ".join(rows.column_names)}); give a file')
    return _checked(f"data set {name}", list(rows["text"]))
