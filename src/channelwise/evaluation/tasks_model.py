"""The harness's own Hugging Face model, around one that is loaded already. Importing this needs lm-eval."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from channelwise.errors import NumericalError
from channelwise.runtime.widening import wide_products

TOKENS_AT_ONCE = 2048
"""Tokens of a batch, padding included: enough to keep a processor busy, few enough for small memories."""

_LARGEST_LOGITS = 2**28
_REQUESTS = {
    "loglikelihood": "answers to score",
    "loglikelihood_rolling": "texts to score",
    "generate_until": "answers to generate",
}

Report = Callable[[str, int, int], None]


class LoadedModel(HFLM):
    """Scores as the harness does; tells how far it is, sizes its batches, and refuses logits that are not finite.

    cut: (task, document) of every document that was longer than the model's window; the harness cuts it on the left.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, batch: int | None, report: Report) -> None:
        # The harness gives a tokenizer without a padding token one; the caller's stays as it is.
        own = copy.deepcopy(tokenizer)
        super().__init__(pretrained=model, tokenizer=own, batch_size="auto" if batch is None else batch)
        self.cut: set[tuple[str, int]] = set()
        self._report = report
        self._documents: list[tuple[str, int]] = []
        self._batch = range(0)
        self._done, self._total, self._label = 0, 0, ""
        self.set_cache_hook(_Counter(self._answered))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in the harness."""
        self._begin("loglikelihood", requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As in the harness."""
        self._begin("loglikelihood_rolling", requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As in the harness."""
        self._begin("generate_until", requests)
        return super().generate_until(requests, disable_tqdm=True)

    def _begin(self, kind: str, requests: Sequence[Any]) -> None:
        self._documents = [(request.task_name, request.doc_id) for request in requests]
        self._done, self._total = 0, len(requests)
        self._label = f"{self._total:,} {_REQUESTS[kind]}"
        self._report(self._label, 0, self._total)

    def _answered(self) -> None:
        self._done += 1
        # Standard errors of perplexities take the harness a while.
        label = "adding up the scores" if self._done == self._total else self._label
        self._report(label, self._done, self._total)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if override_bs is None:  # otherwise these are windows of a long text, which fit
            for document, (_, context, continuation) in zip(self._documents, requests, strict=True):
                if len(context) + len(continuation) > self.max_length + 1:
                    self.cut.add(document)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        with wide_products(self.model):
            logits: torch.Tensor = super()._model_call(inps, attn_mask, labels)
        # −inf is a token that the model excludes.
        if not bool((logits < torch.inf).all()):
            raise NumericalError("the model's logits are not finite; its weights are damaged or its dtype overflows")
        return logits

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        """The rows of the batch that the request at `pos` is in; the longest one comes first."""
        if pos == 0 or pos not in self._batch:
            _, context, continuation = n_reordered_requests[pos]
            # The last token is predicted, not read.
            self._batch = range(pos, pos + self._rows(len(context) + len(continuation) - 1))
        return len(self._batch)

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """Where the harness would try batches out until memory is full: rows as long as the model's window."""
        return self._rows(self.max_length)

    def _rows(self, length: int) -> int:
        """How many rows of so many tokens make a batch."""
        tokens = min(TOKENS_AT_ONCE, _LARGEST_LOGITS // int(self.vocab_size))
        return int(max(1, tokens // min(length, self.max_length)))


class _Counter:
    """Told of every answer, in place of the harness's cache of answers."""

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._answered()
