"""What to ask of a model, checked beforehand, and the answers as one flat dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from channelwise.errors import InputError
from channelwise.evaluation import embeddings as embedding
from channelwise.evaluation import perplexity as language
from channelwise.evaluation.sizes import model_sizes
from channelwise.model.batches import check_vocabulary, length_limit, token_stream, tokenize_items, window_length
from channelwise.model.texts import Texts, read_texts

Results = dict[str, Any]
TextSource = str | Path | Sequence[str] | Texts


@dataclass(frozen=True)
class Questions:
    """Tokenized inputs of the measurements.

    stream: int64 [tokens] for perplexity, in windows of `length`. sentences: int64 [tokens] each, for embeddings;
    labels: one per sentence. original: unit embeddings [sentences, channels] to compare with.
    """

    stream: torch.Tensor | None = None
    length: int = language.DEFAULT_LENGTH
    sentences: tuple[torch.Tensor, ...] | None = None
    labels: tuple[str, ...] | None = None
    original: torch.Tensor | None = None

    def against(self, model: torch.nn.Module) -> "Questions":
        """The same questions with this model's embeddings as the ones to compare with."""
        if self.sentences is None:
            return self
        return replace(self, original=embedding.embed(model, self.sentences).vectors)


def prepare(
    model: torch.nn.Module,
    tokenizer: Any,
    *,
    perplexity: TextSource | None = None,
    length: int | None = None,
    embeddings: TextSource | None = None,
) -> Questions:
    """Reads and tokenizes all that will be asked. Raises InputError for what the model or the files cannot answer."""
    if perplexity is None and embeddings is None:
        raise InputError("nothing to evaluate; give --perplexity TEXT or --embeddings FILE.tsv")
    questions = Questions()
    limit = length_limit(model, tokenizer)
    if perplexity is not None:
        language.need_language_model(model)
        texts = read_texts(perplexity, bundled="test")
        window = window_length(length, language.DEFAULT_LENGTH, limit)
        questions = replace(questions, stream=_stream(model, tokenizer, texts), length=window)
    if embeddings is not None:
        texts = read_texts(embeddings)
        if texts.labels is not None:
            embedding.check_probe(texts.labels)
        window = window_length(length if perplexity is None else None, embedding.DEFAULT_LENGTH, limit)
        sentences = tokenize_items(texts, tokenizer, window)
        check_vocabulary([{"input_ids": ids} for ids in sentences if len(ids)], model, texts.source)
        questions = replace(questions, sentences=tuple(sentences), labels=texts.labels)
    return questions


def measure(model: torch.nn.Module, questions: Questions) -> Results:
    """The answers: perplexity, tokens, length, seconds, model_bytes, bits_per_weight, and those of embeddings if asked.

    perplexity and length are None where only embeddings were asked; tokens and seconds are those of all measurements.
    """
    sizes = model_sizes(model)
    results: Results = {
        "perplexity": None,
        "tokens": 0,
        "length": None,
        "seconds": 0.0,
        "model_bytes": sizes.model_bytes,
        "bits_per_weight": sizes.bits_per_weight,
    }
    if questions.stream is not None:
        found = language.measure_perplexity(model, questions.stream, questions.length)
        results |= {"perplexity": found.perplexity, "length": found.length}
        results["tokens"] += found.tokens
        results["seconds"] += found.seconds
    if questions.sentences is not None:
        results |= _embedding_results(model, questions, results)
    return results


def _embedding_results(model: torch.nn.Module, questions: Questions, results: Results) -> Results:
    """The entries that embeddings add to the results so far."""
    assert questions.sentences is not None and questions.original is not None
    found = embedding.embed(model, questions.sentences)
    near = embedding.agreement(found.vectors, questions.original, questions.labels)
    return {
        "tokens": results["tokens"] + found.tokens,
        "seconds": results["seconds"] + found.seconds,
        "cosine_mean": near.cosine_mean,
        "cosine_min": near.cosine_min,
        "probe_accuracy": near.probe_accuracy,
        "probe_accuracy_fp": near.probe_accuracy_fp,
    }


def _stream(model: torch.nn.Module, tokenizer: Any, texts: Texts) -> torch.Tensor:
    """The text's token ids, known to fit the model. Raises InputError for fewer than two tokens or a foreign id."""
    ids = token_stream(texts, tokenizer)
    if len(ids) < 2:
        raise InputError(f"{texts.source} has {len(ids)} tokens; perplexity needs at least two, give a longer text")
    check_vocabulary([{"input_ids": ids}], model, texts.source)
    return ids
