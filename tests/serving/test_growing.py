"""Text in pieces: they add up, and nothing is given out that has to be taken back."""

import pytest

from channelwise.serving.growing import GrowingText
from tests.cli import tiny

BYTES = tiny.byte_tokenizer().backend_tokenizer


def grown(text: str, stop: tuple[str, ...] = (), cut: int = 0) -> tuple[list[str], GrowingText]:
    """The pieces of a text, without its last `cut` tokens."""
    growing = GrowingText(BYTES, BYTES.encode("prompt ").ids, stop)
    tokens = BYTES.encode(text).ids
    pieces = [growing.add(token) for token in tokens[: len(tokens) - cut]]
    return [*pieces, growing.rest()], growing


@pytest.mark.parametrize("text", ["the cat sees a dog.", "è — ✓ 🎉", "a\n\n b", ""])
def test_the_pieces_add_up_to_the_text(text: str) -> None:
    assert "".join(grown(text)[0]) == text


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert [piece for piece in grown("🎉✓")[0] if piece] == ["🎉", "✓"]


def test_what_is_left_of_an_incomplete_character_is_in_the_rest() -> None:
    *pieces, rest = grown("a🎉", cut=1)[0]
    assert ("".join(pieces), rest) == ("a", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("dog",), "the cat sees a "),
        (("dog", "cat"), "the "),
        (("the",), ""),
        (("house",), "the cat sees a dog."),
        (("sees a dog.",), "the cat "),
        (("dog. and",), "the cat sees a dog."),
    ],
)
def test_the_text_ends_before_the_first_stop(stop: tuple[str, ...], expected: str) -> None:
    pieces, growing = grown("the cat sees a dog.", stop)
    assert "".join(pieces) == expected
    assert growing.ended is (expected != "the cat sees a dog.")


def test_what_may_be_the_beginning_of_a_stop_waits() -> None:
    growing = GrowingText(BYTES, [], ("ab!",))
    assert [growing.add(BYTES.token_to_id(letter)) for letter in "abab?"] == ["", "", "ab", "", "ab?"]


def test_nothing_comes_after_a_stop() -> None:
    growing = GrowingText(BYTES, [], ("b",))
    assert [growing.add(BYTES.token_to_id(letter)) for letter in "abc"] == ["a", "", ""]
    assert (growing.rest(), len(growing.tokens)) == ("", 2)


@pytest.mark.parametrize(("keep", "expected"), [(False, "ab"), (True, "a<|end|>b")])
def test_special_tokens_are_part_of_the_text_only_if_wanted(keep: bool, expected: str) -> None:
    growing = GrowingText(BYTES, [], keep_special=keep)
    ids = [BYTES.token_to_id(token) for token in ("a", "<|end|>", "b")]
    assert "".join(map(growing.add, ids)) + growing.rest() == expected
