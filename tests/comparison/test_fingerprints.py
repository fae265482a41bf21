"""Fingerprints change when anything that matters changes, and not otherwise."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise.comparison.fingerprints import (
    NOT_DONE,
    batches_digest,
    fingerprint,
    model_digest,
    questions_digest,
    recipe_content,
    source_digest,
    surroundings,
)
from channelwise.evaluation.classification import Examples
from channelwise.evaluation.measure import Questions
from channelwise.model.images import Images
from channelwise.model.loading import load_model
from channelwise.model.pixels import pixels_for
from channelwise.recipe import Recipe, load_recipe
from tests.cli import tiny

OUTSIDE = """
from dataclasses import dataclass
from channelwise.methods.site import Choice
from channelwise.numerics.transform import ChannelTransform

@dataclass(frozen=True)
class Own:
    def choose(self, site):
        return Choice(ChannelTransform())
"""


class TestModels:
    def test_the_same_wherever_it_lies(self, tmp_path: Path) -> None:
        model, tokenizer = tiny.llama(), tiny.byte_tokenizer()
        folders = [tiny.saved(model, tokenizer, tmp_path / name) for name in ("one", "two")]
        loaded = [load_model(folder)[0] for folder in folders]
        assert model_digest(loaded[0]) == model_digest(loaded[1])

    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
    def test_one_bit_of_one_weight(self, name: str) -> None:
        model = tiny.llama()
        before = model_digest(model)
        assert before == model_digest(tiny.llama())
        weight = model.get_parameter(name).data.view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
        assert model_digest(model) != before

    def test_the_config(self) -> None:
        assert model_digest(tiny.llama()) != model_digest(tiny.llama(rms_norm_eps=1e-5))

    def test_the_dtype(self) -> None:
        zeros = tiny.llama()
        for parameter in zeros.parameters():
            parameter.data.zero_()
        narrow = copy.deepcopy(zeros).to(torch.bfloat16)
        assert model_digest(zeros) != model_digest(narrow)

    def test_buffers(self) -> None:
        model = tiny.llama()
        before = model_digest(model)
        model.model.rotary_emb.inv_freq *= 2
        assert model_digest(model) != before


class TestInputs:
    ids = torch.arange(12).view(2, 6)

    def test_of_batches(self) -> None:
        same = batches_digest([{"input_ids": self.ids.clone()}])
        assert batches_digest([{"input_ids": self.ids}]) == same
        other = self.ids.clone()
        other[1, 5] = 0
        changed = [
            [{"input_ids": other}],
            [{"input_ids": self.ids.flip(0)}],
            [{"input_ids": self.ids.view(3, 4)}],
            [{"input_ids": self.ids.int()}],
            [{"input_ids": self.ids}, {"input_ids": self.ids}],
            [{"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)}],
        ]
        assert len({same, *map(batches_digest, changed)}) == 1 + len(changed)

    def test_of_questions(self) -> None:
        sentences = (torch.tensor([1, 2]), torch.tensor([3]))
        asked = Questions(torch.arange(9), 4, sentences, ("a", "b"))
        examples = Examples(sentences, torch.tensor([0, 1]), 2)
        changed = [
            replace(asked, stream=torch.arange(8)),
            replace(asked, length=5),
            replace(asked, sentences=sentences[::-1]),
            replace(asked, labels=("a", "c")),
            replace(asked, examples=examples),
            replace(asked, examples=replace(examples, labels=torch.tensor([1, 1]))),
            replace(asked, examples=replace(examples, count=3)),
            replace(asked, examples=replace(examples, inputs=sentences[:1])),
        ]
        same = questions_digest(replace(asked, stream=torch.arange(9)))
        assert questions_digest(asked) == same
        assert len({same, *map(questions_digest, changed)}) == 1 + len(changed)

    def test_what_the_original_answers_follows_from_the_rest(self) -> None:
        sentences = (torch.tensor([1, 2, 3]),)
        asked = Questions(sentences=sentences)
        assert questions_digest(asked.against(tiny.bert())) == questions_digest(asked)

    def test_of_images(self) -> None:
        model, processor = tiny.vit(), tiny.image_processor()
        pictures = tiny.pictures(3)

        def digest(items: Any) -> str:
            pixels = pixels_for(model, Images("pictures", items), processor)
            return questions_digest(Questions(examples=Examples(pixels, torch.zeros(3, dtype=torch.int64), 3)))

        brighter = pictures.copy()
        brighter[2, 0, 0, 0] ^= 128
        assert digest(pictures) == digest(pictures.copy()) != digest(brighter)


class TestRecipes:
    recipe = load_recipe("outliertune-w6a6")

    @pytest.mark.parametrize(
        "setting", ["name=other", "summary=other words", "paper=null", "calibration.samples=3", "calibration.length=9"]
    )
    def test_what_a_recipe_is_called_does_nothing(self, setting: str) -> None:
        assert recipe_content(load_recipe(self.recipe, [setting])) == recipe_content(self.recipe)

    @pytest.mark.parametrize(
        "setting",
        ["weights.bits=5", "stream.method.shift=none", "inner.inputs=null", "head={inputs: null}", "search_tokens=7"],
    )
    def test_what_it_does_matters(self, setting: str) -> None:
        assert recipe_content(load_recipe(self.recipe, [setting])) != recipe_content(self.recipe)

    def test_every_other_entry_is_in_it(self) -> None:
        assert set(recipe_content(self.recipe)) == set(Recipe.model_fields) - NOT_DONE | {"imported"}

    def test_of_a_method_from_outside_its_file_matters(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "outside_method.py").write_text(OUTSIDE)
        recipe = load_recipe("rtn-w8a8", ["inner.method.name=outside_method:Own"])
        before = recipe_content(recipe)
        assert before == recipe_content(recipe)
        (tmp_path / "outside_method.py").write_text(OUTSIDE + "# changed")
        assert recipe_content(recipe) != before


class TestSurroundings:
    @pytest.mark.parametrize(
        ("path", "matters"),
        [
            ("engine/walk.py", True),
            ("new_room/method.py", True),
            ("runtime/cpu/_kernels.so", True),
            ("cli/compare.py", False),
            ("report/page/comparison.py", False),
            ("recipes/rtn-w8a8.yaml", False),
        ],
    )
    def test_the_source_that_makes_results(self, tmp_path: Path, path: str, matters: bool) -> None:
        def package(content: str) -> Path:
            folder = tmp_path / content / "package"
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_text(content)
            return folder

        assert (source_digest(package("one")) != source_digest(package("two"))) == matters

    def test_threads_and_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here = surroundings(torch.device("cpu"))
        assert here == surroundings(torch.device("cpu"))
        monkeypatch.setattr("channelwise.comparison.fingerprints.level", lambda: "other")
        assert surroundings(torch.device("cpu")) == {**here, "kernels": "other"}
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
        assert surroundings(torch.device("cpu"))["threads"] == 99


def test_any_part_changes_the_fingerprint_and_their_order_does_not() -> None:
    parts = {"model": "a", "seed": 0, "recipe": {"bits": 8, "name": "x"}}
    same = fingerprint(dict(reversed(parts.items())))
    changed: list[Callable[[], dict]] = [lambda: {**parts, "seed": 1}, lambda: {**parts, "recipe": {"bits": 8}}]
    assert fingerprint(parts) == same
    assert len({same, *(fingerprint(change()) for change in changed)}) == 3
