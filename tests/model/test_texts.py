"""Reading texts."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from channelwise.errors import InputError
from channelwise.model.texts import Texts, read_texts


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_txt_is_one_stream(tmp_path: Path) -> None:
    texts = read_texts(file(tmp_path, "a.txt", "one\n\ntwo\n"))
    assert texts.items == ("one\n\ntwo\n",)
    assert texts.is_stream and texts.stream == "one\n\ntwo\n"


def test_any_other_suffix_is_read_as_txt(tmp_path: Path) -> None:
    assert read_texts(file(tmp_path, "a.py", "x = 1")).stream == "x = 1"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_texts(file(tmp_path, "a.txt", b"\xef\xbb\xbfone")).stream == "one"


def test_jsonl(tmp_path: Path) -> None:
    texts = read_texts(file(tmp_path, "a.jsonl", '{"text": "one", "id": 3}\n\n{"text": "two\\nlines"}\n{"text": " "}'))
    assert texts.items == ("one", "two\nlines")
    assert texts.stream == "one\n\ntwo\nlines"
    assert not texts.is_stream and texts.labels is None


def test_tsv_with_labels(tmp_path: Path) -> None:
    texts = read_texts(file(tmp_path, "a.tsv", 'label\ttext\r\n1\tone "quoted\r\n0\t \r\n0\ttwo\u2028half\r\n'))
    assert texts.items == ('one "quoted', "two\u2028half")
    assert texts.labels == ("1", "0")
    assert [texts.place(0), texts.place(1)] == ["line 2", "line 4"]


def test_tsv_without_labels(tmp_path: Path) -> None:
    assert read_texts(file(tmp_path, "a.tsv", "text\none\n")) == Texts(str(tmp_path / "a.tsv"), ("one",))


def test_a_list_of_strings() -> None:
    assert read_texts(["one", "", "two"]).items == ("one", "two")


def test_texts_stay_texts() -> None:
    texts = Texts("somewhere", ("one",))
    assert read_texts(texts) is texts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", " \n", "is empty"),
        ("a.txt", b"abc\0", "byte 3"),
        ("a.txt", b"ab\xe9 c", "offset 2"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}', "line 2"),
        ("a.jsonl", '{"text": "x"}\n\nnot json', "line 3"),
        ("a.jsonl", '["x"]', "line 1"),
        ("a.jsonl", '{"text": " "}', "no text"),
        ("a.tsv", "sentence\tlabel\nx\t1", '"text"'),
        ("a.tsv", "text\tlabel\nx\t1\ny", "line 3 has 1 columns"),
        ("a.tsv", "text\tlabel", "no text"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(InputError, match=said) as error:
        read_texts(path)
    assert str(path) in str(error.value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*gone\.txt"):
        read_texts(tmp_path / "gone.txt")
    with pytest.raises(InputError, match="is a directory"):
        read_texts(tmp_path)


@pytest.mark.parametrize("items", [[], [""], ["one", 2]])
def test_lists_that_hold_no_texts(items: list) -> None:
    with pytest.raises(InputError):
        read_texts(items)


def test_a_hub_name_without_the_package_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install datasets"):
        read_texts("someone/some-data")


class _Rows(dict):
    column_names = ("text",)


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> _Rows:
        if name != "someone/some-data":
            raise OSError("not\nfound")
        return _Rows(text=["one", "two"])

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert read_texts("someone/some-data").items == ("one", "two")
    with pytest.raises(InputError, match="not found"):
        read_texts("someone/else")
