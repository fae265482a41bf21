"""Classifiers' answers: accuracy, agreement, labels."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from channelwise.errors import InputError, NumericalError
from channelwise.evaluation.classification import class_count, class_numbers, classify, share_of_equal
from channelwise.evaluation.measure import measure, prepare
from channelwise.model.images import Images
from channelwise.model.pixels import Pixels, pixels_for
from channelwise.model.texts import Texts
from tests.cli import tiny

LABELS = ("Circle", "square", "Square", "1")


class Stub(nn.Module):
    """A classifier whose logits are a known function of its input."""

    def __init__(self, main_input_name: str, labels: int = 4, **config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.main_input_name = main_input_name
        self.config = SimpleNamespace(num_labels=labels, id2label=dict(enumerate(LABELS)), pad_token_id=0, **config)


class LengthClassifier(Stub):
    """Sentences of n tokens are class n modulo 4."""

    def __init__(self, offset: int = 0, **config: Any) -> None:
        super().__init__("input_ids", **config)
        self.offset = offset
        self.rows: list[int] = []

    def forward(self, input_ids: torch.Tensor) -> Any:
        self.rows.append(len(input_ids))
        logits = torch.zeros(len(input_ids), 4)
        logits[:, (input_ids.shape[1] + self.offset) % 4] = self.weight
        return SimpleNamespace(logits=logits)


class BrightnessClassifier(Stub):
    """Images whose first value is v are class v."""

    def __init__(self) -> None:
        super().__init__("pixel_values", num_channels=1, image_size=2)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        assert len(pixel_values) <= 32
        return SimpleNamespace(logits=torch.eye(4)[pixel_values[:, 0, 0, 0].long()] * self.weight)


def sentences(*lengths: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.ones(length, dtype=torch.int64) for length in lengths)


def brightness(values: list[int]) -> np.ndarray:
    """float32 [N, 1, 2, 2], each image of one value."""
    return np.array(values, dtype=np.float32)[:, None, None, None].repeat(2, 2).repeat(2, 3)


def numbers(labels: list[str], model: Any = None) -> list[int]:
    found = class_numbers(labels, model or LengthClassifier(), 4, "file.tsv", lambda index: f"line {index + 2}")
    return found.tolist()


def test_answers_are_in_the_order_of_the_sentences() -> None:
    model = LengthClassifier()
    found = classify(model, sentences(5, 3, 5, 8, 2))
    assert found.classes.tolist() == [1, 3, 1, 0, 2]
    assert found.tokens == 23
    assert sorted(model.rows) == [1, 1, 1, 2]


def test_answers_are_in_the_order_of_the_images() -> None:
    values = [index * 7 % 4 for index in range(70)]
    pixels = pixels_for(BrightnessClassifier(), Images("array", brightness(values)), None)
    found = classify(BrightnessClassifier(), pixels)
    assert found.classes.tolist() == values
    assert found.tokens == 0


def test_a_decoder_without_a_padding_token_reads_one_sentence_at_a_time() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**tiny.llama().config.to_dict(), "num_labels": 3})
    model = transformers.LlamaForSequenceClassification(config).eval()
    assert config.pad_token_id is None
    texts = tuple(torch.randint(tiny.VOCABULARY, (length,)) for length in (4, 6, 4, 4))
    with torch.no_grad():
        expected = [model(text[None]).logits.argmax().item() for text in texts]
    assert classify(model, texts).classes.tolist() == expected


def test_accuracy_and_agreement_are_shares_of_all_items() -> None:
    texts = Texts("list", ("a", "a b", "a b c", "a b c d e"), labels=("square", "Square", "Square", "Square"))
    # With [CLS] and [SEP] these are 3, 4, 5 and 7 tokens: classes 3, 0, 1, 3. Labels are 1, 2, 2, 2.
    tokenizer = tiny.word_tokenizer()
    asked = prepare(LengthClassifier(), tokenizer, classification=texts)
    assert measure(LengthClassifier(), asked)["accuracy"] == 0.0
    shifted = measure(LengthClassifier(offset=1), asked)  # classes 0, 1, 2, 0
    assert shifted["accuracy"] == 0.25
    assert shifted["items"] == 4 and shifted["tokens"] == 19
    assert "agreement" not in shifted and "accuracy_fp" not in shifted
    against = asked.against(LengthClassifier(offset=1))
    found = measure(LengthClassifier(offset=5), against)
    assert (found["accuracy"], found["accuracy_fp"], found["agreement"]) == (0.25, 0.25, 1.0)
    other = measure(LengthClassifier(), against)
    assert (other["accuracy"], other["accuracy_fp"], other["agreement"]) == (0.0, 0.25, 0.0)


def test_agreement_is_with_answers_not_with_labels() -> None:
    assert share_of_equal(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 1])) == 0.5


def test_images_are_measured_like_sentences() -> None:
    images = Images("array", brightness([0, 1, 2, 3]), labels=("0", "1", "Square", "0"))
    asked = prepare(BrightnessClassifier(), None, images=images).against(BrightnessClassifier())
    found = measure(BrightnessClassifier(), asked)
    assert found["accuracy"] == found["accuracy_fp"] == 0.5
    assert found["agreement"] == 1.0 and found["items"] == 4 and found["tokens"] == 0


class TestLabels:
    def test_by_name(self) -> None:
        assert numbers(["Circle", "square", "Square"]) == [0, 1, 2]

    def test_regardless_of_case_where_none_is_the_same_in_letters(self) -> None:
        assert numbers(["circle", "CIRCLE"]) == [0, 0]

    def test_one_that_names_two_classes(self) -> None:
        with pytest.raises(InputError, match="several labels like 'SQUARE'"):
            numbers(["SQUARE"])

    def test_by_number(self) -> None:
        assert numbers(["0", "2"]) == [0, 2]

    def test_a_name_goes_before_a_number(self) -> None:
        assert numbers(["1", "3"]) == [3, 3]

    @pytest.mark.parametrize("label", ["star", "4", "-1", "", "1.0"])
    def test_unknown_ones_are_named_with_their_place(self, label: str) -> None:
        with pytest.raises(InputError, match=f"file.tsv, line 3: .* no label '{label}' .*Circle, square, Square, 1"):
            numbers(["0", label])

    def test_of_many_labels_the_first_are_named(self) -> None:
        model = SimpleNamespace(config=SimpleNamespace(id2label={index: f"name{index}" for index in range(100)}))
        with pytest.raises(InputError, match=r"name0, .*name4, … 95 more\).* 0 to 99"):
            class_numbers(["x"], model, 100, "file", lambda index: "here")  # type: ignore[arg-type]

    def test_a_model_without_a_config_has_numbers(self) -> None:
        assert numbers(["3", "0"], nn.Linear(2, 2)) == [3, 0]


class TestModels:
    @pytest.mark.parametrize("model", [tiny.bert(), tiny.llama()], ids=["no head", "language model"])
    def test_that_are_no_sequence_classifiers(self, model: Any) -> None:
        with pytest.raises(InputError, match="is no sequence classifier"):
            class_count(model, sentences(3, 5))

    def test_that_label_tokens(self) -> None:
        model = transformers.BertForTokenClassification(tiny.bert().config)
        with pytest.raises(InputError, match="is no sequence classifier"):
            class_count(model, sentences(3, 5))

    def test_that_are_no_image_classifiers(self) -> None:
        model = transformers.ViTModel(tiny.vit().config)
        with pytest.raises(InputError, match="is no image classifier"):
            class_count(model, self.pixels(model, 16))

    def test_that_take_other_images(self) -> None:
        with pytest.raises(InputError, match=r"\[3, 12, 12\].*own size"):
            class_count(tiny.vit(), self.pixels(tiny.vit(image_size=12), 12))

    @pytest.mark.parametrize("config", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
    def test_that_choose_nothing(self, config: dict) -> None:
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(**{**tiny.bert().config.to_dict(), **config})
        )
        with pytest.raises(InputError, match="does not choose one of several classes"):
            class_count(model, sentences(3))

    def test_with_numbers_that_are_not_finite(self) -> None:
        model = tiny.bert_classifier()
        assert class_count(model, sentences(3)) == 3
        model.classifier.bias.data[1] = torch.nan
        with pytest.raises(NumericalError, match="not finite"):
            classify(model, sentences(3))

    def test_whose_original_has_other_classes(self) -> None:
        texts = Texts("list", ("the cat",), labels=("cat",))
        asked = prepare(tiny.bert_classifier(), tiny.word_tokenizer(), classification=texts)
        original = transformers.BertForSequenceClassification(tiny.bert().config)
        with pytest.raises(InputError, match=r"3 classes .* 2; --against"):
            asked.against(original)
        with pytest.raises(InputError, match=r"ViTForImageClassification reads no texts; --against"):
            asked.against(tiny.vit())

    def test_keep_their_mode(self) -> None:
        model = tiny.bert_classifier().train()
        classify(model, sentences(3, 4))
        assert model.training

    @staticmethod
    def pixels(model: Any, side: int) -> Pixels:
        return pixels_for(model, Images("array", np.zeros((2, 3, side, side), dtype=np.float32)), None)


class TestQuestions:
    def test_texts_need_labels(self) -> None:
        with pytest.raises(InputError, match='columns "text" and "label"'):
            prepare(tiny.bert_classifier(), tiny.word_tokenizer(), classification=["the cat"])

    def test_an_unknown_label_is_named_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text("text\tlabel\nthe cat\tcat\n\n \tcat\nthe dog\tfish\n")
        with pytest.raises(InputError, match=r"a.tsv, line 5: .*'fish' \(it has: dog, cat, house\)"):
            prepare(tiny.bert_classifier(), tiny.word_tokenizer(), classification=path)

    def test_an_unknown_label_is_named_with_its_sub_folder(self, tmp_path: Path) -> None:
        folder = tiny.image_folder(tmp_path / "images", ["circle", "triangle"])
        with pytest.raises(InputError, match=r"sub-folder triangle: .*circle, square, star"):
            prepare(tiny.vit(), None, images=folder, find_processor=tiny.image_processor)

    def test_broken_images_stop_it(self, tmp_path: Path) -> None:
        folder = tiny.image_folder(tmp_path / "images", ["circle", "star"])
        (folder / "star" / "001.png").write_bytes(b"\x89PNG")
        with pytest.raises(InputError, match=r"1 of 2 images cannot be read, first .*001.png"):
            prepare(tiny.vit(), None, images=folder, find_processor=tiny.image_processor)

    def test_each_kind_of_model_has_its_question(self, tmp_path: Path) -> None:
        folder = tiny.image_folder(tmp_path / "images", ["circle"])
        with pytest.raises(InputError, match="reads no images"):
            prepare(tiny.bert_classifier(), tiny.word_tokenizer(), images=folder)
        texts = Texts("list", ("the cat",), labels=("cat",))
        with pytest.raises(InputError, match="reads images, but list is text"):
            prepare(tiny.vit(), tiny.word_tokenizer(), classification=texts)
        with pytest.raises(InputError, match="not both"):
            prepare(tiny.vit(), None, classification=texts, images=folder)

    def test_a_text_without_tokens_is_named(self) -> None:
        texts = Texts("a.tsv", ("the cat", "the"), labels=("cat", "cat"), lines=(2, 3))
        with pytest.raises(InputError, match=r"a.tsv, line 3 has no tokens"):
            prepare(tiny.bert_classifier(), self.shortening, classification=texts)

    @staticmethod
    def shortening(texts: list[str], **options: Any) -> dict:
        """A tokenizer that drops the first word of each text."""
        return {"input_ids": [[5] * (len(text.split()) - 1) for text in texts]}

    def test_long_sentences_are_cut_to_the_models_limit(self) -> None:
        texts = Texts("list", ("the cat " * 100,), labels=("cat",))
        asked = prepare(tiny.bert_classifier(), tiny.word_tokenizer(), classification=texts)
        assert measure(tiny.bert_classifier(), asked)["tokens"] == tiny.POSITIONS
