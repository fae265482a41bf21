"""Text that grows token by token, up to a stop."""

from collections.abc import Sequence
from typing import Any


class GrowingText:
    """What the tokens after a prompt say, given out in pieces that never have to be taken back.

    A character of several tokens waits for its last one; what may be the beginning of a stop waits until it is clear.
    The stop itself is not part of the text.

    tokenizer: of the `tokenizers` library. prompt: its token ids, for tokenizers whose words depend on what precedes
    them. keep_special: special tokens are part of the text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = (), *, keep_special: bool = False):
        from tokenizers.decoders import DecodeStream

        self.tokens: list[int] = []
        """The ids after the prompt, those of a stop included."""
        self.ended = False
        """Whether a stop was met."""
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._stop = tuple(stop)
        self._skip_special = not keep_special
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=self._skip_special)
        self._decoded = ""
        self._given = 0

    def add(self, token: int) -> str:
        """The text that is certain after one more token and was not before; after a stop there is none."""
        if self.ended:
            return ""
        self.tokens.append(token)
        self._decoded += self._stream.step(self._tokenizer, token) or ""
        return self._give(self._certain_end())

    def rest(self) -> str:
        """What was held back, once no token follows."""
        if self.ended:
            return ""
        before = self._decode(self._prompt)
        whole = self._decode(self._prompt + self.tokens)[len(before) :]
        if whole.startswith(self._decoded):  # a character that is not complete is in this one only
            self._decoded = whole
        self._certain_end()
        return self._give(len(self._decoded))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special))

    def _give(self, end: int) -> str:
        end = max(end, self._given)
        piece, self._given = self._decoded[self._given : end], end
        return piece

    def _certain_end(self) -> int:
        """Up to where the text is certain. Cuts it at the first stop, if there is one."""
        found = [place for place in (self._decoded.find(stop, self._given) for stop in self._stop) if place >= 0]
        if found:
            self.ended = True
            self._decoded = self._decoded[: min(found)]
            return len(self._decoded)
        held = (_overlap(self._decoded[self._given :], stop) for stop in self._stop)
        return len(self._decoded) - max(held, default=0)


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of the text that the stop begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
