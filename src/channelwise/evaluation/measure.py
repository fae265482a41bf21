"""What to ask of a model, checked beforehand, and the answers as one flat dictionary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from channelwise.errors import InputError
from channelwise.evaluation import classification as choice
from channelwise.evaluation import embeddings as embedding
from channelwise.evaluation import perplexity as language
from channelwise.evaluation.sizes import model_sizes
from channelwise.model.batches import check_vocabulary, length_limit, token_stream, tokenize_items, window_length
from channelwise.model.images import Images, check_images, read_labelled_images
from channelwise.model.pixels import need_image_model, need_text_model, pixels_for
from channelwise.model.texts import Texts, read_texts

Results = dict[str, Any]
TextSource = str | Path | Sequence[str] | Texts
ImageSource = str | Path | Images


@dataclass(frozen=True)
class Questions:
    """Tokenized inputs of the measurements.

    stream: int64 [tokens] for perplexity, in windows of `length`. sentences: int64 [tokens] each, for embeddings;
    labels: one per sentence. original: unit embeddings [sentences, channels] to compare with. examples: sentences or
    images to classify.
    """

    stream: torch.Tensor | None = None
    length: int = language.DEFAULT_LENGTH
    sentences: tuple[torch.Tensor, ...] | None = None
    labels: tuple[str, ...] | None = None
    original: torch.Tensor | None = None
    examples: choice.Examples | None = None

    def against(self, model: torch.nn.Module) -> "Questions":
        """The same questions with this model's embeddings and answers as the ones to compare with.

        Raises InputError where it is no such model as the questions were prepared for.
        """
        asked = self
        if self.sentences is not None:
            asked = replace(asked, original=embedding.embed(model, self.sentences).vectors)
        if self.examples is not None:
            asked = replace(asked, examples=self.examples.against(model))
        return asked


def prepare(
    model: torch.nn.Module,
    tokenizer: Any,
    *,
    perplexity: TextSource | None = None,
    length: int | None = None,
    embeddings: TextSource | None = None,
    classification: TextSource | None = None,
    images: ImageSource | None = None,
    find_processor: Callable[[], Any] = lambda: None,
) -> Questions:
    """Reads and tokenizes all that will be asked; images are read, too, but not kept.

    find_processor: gives the model's image processor or None, called only if there are images. Raises InputError
    for what the model or the files cannot answer.
    """
    if perplexity is None and embeddings is None and classification is None and images is None:
        raise InputError(
            "nothing to evaluate; give --perplexity TEXT, --embeddings FILE.tsv, --classification FILE.tsv, "
            "--images DIR|FILE.npz, or --tasks to `channelwise evaluate`"
        )
    if classification is not None and images is not None:
        raise InputError("a model classifies texts or images; give --classification or --images, not both")
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
        sentences = _sentences(model, tokenizer, texts, window)
        questions = replace(questions, sentences=sentences, labels=texts.labels)
    if classification is not None:
        window = window_length(length, language.DEFAULT_LENGTH, limit)
        examples = _text_examples(model, tokenizer, read_texts(classification), window)
        questions = replace(questions, examples=examples)
    if images is not None:
        questions = replace(questions, examples=_image_examples(model, find_processor, images))
    return questions


def measure(model: torch.nn.Module, questions: Questions) -> Results:
    """The answers: perplexity, tokens, length, seconds, model_bytes, bits_per_weight, and those of the others if asked.

    perplexity and length are None where no perplexity was asked; tokens and seconds are those of all measurements.
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
    if questions.examples is not None:
        results |= _classification_results(model, questions.examples, results)
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


def _classification_results(model: torch.nn.Module, examples: choice.Examples, results: Results) -> Results:
    """The entries that classification adds to the results so far; accuracy_fp and agreement only with an original."""
    found = choice.classify(model, examples.inputs)
    answers: Results = {
        "tokens": results["tokens"] + found.tokens,
        "seconds": results["seconds"] + found.seconds,
        "items": len(examples.labels),
        "accuracy": choice.share_of_equal(found.classes, examples.labels),
    }
    if examples.original is not None:
        answers["accuracy_fp"] = choice.share_of_equal(examples.original, examples.labels)
        answers["agreement"] = choice.share_of_equal(found.classes, examples.original)
    return answers


def _text_examples(model: torch.nn.Module, tokenizer: Any, texts: Texts, length: int) -> choice.Examples:
    """Raises InputError for texts without labels, a model that is no sequence classifier, labels it does not have."""
    if texts.labels is None:
        raise InputError(f'{texts.source} has no labels; give a .tsv with the columns "text" and "label"')
    sentences = _sentences(model, tokenizer, texts, length)
    empty = [index for index, ids in enumerate(sentences) if not len(ids)]
    if empty:
        raise InputError(f"{texts.source}, {texts.place(empty[0])} has no tokens; give a text, or leave the line out")
    count = choice.class_count(model, sentences)
    labels = choice.class_numbers(texts.labels, model, count, texts.source, texts.place)
    return choice.Examples(sentences, labels, count)


def _image_examples(model: torch.nn.Module, find_processor: Callable[[], Any], source: ImageSource) -> choice.Examples:
    """Raises InputError for images without labels or broken ones, no image classifier, labels it does not have."""
    need_image_model(model, str(getattr(source, "source", source)))
    images = read_labelled_images(source)
    assert images.labels is not None
    pixels = pixels_for(model, images, find_processor())
    check_images(images)
    count = choice.class_count(model, pixels)
    labels = choice.class_numbers(images.labels, model, count, images.source, images.place)
    return choice.Examples(pixels, labels, count)


def _sentences(model: torch.nn.Module, tokenizer: Any, texts: Texts, length: int) -> tuple[torch.Tensor, ...]:
    """Each text's token ids, known to fit the model. Raises InputError for a foreign id, and for an image model."""
    need_text_model(model, texts.source)
    sentences = tokenize_items(texts, tokenizer, length)
    check_vocabulary([{"input_ids": ids} for ids in sentences if len(ids)], model, texts.source)
    return tuple(sentences)


def _stream(model: torch.nn.Module, tokenizer: Any, texts: Texts) -> torch.Tensor:
    """The text's token ids, known to fit the model. Raises InputError for fewer than two tokens or a foreign id."""
    ids = token_stream(texts, tokenizer)
    if len(ids) < 2:
        raise InputError(f"{texts.source} has {len(ids)} tokens; perplexity needs at least two, give a longer text")
    check_vocabulary([{"input_ids": ids}], model, texts.source)
    return ids
