"""One run of a comparison: a model, quantized by a recipe or left alone, measured; from the cache where it can be."""

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import nn

from channelwise.comparison.cache import Cache, Entry
from channelwise.comparison.facts import layer_facts, site_facts
from channelwise.comparison.fingerprints import (
    batches_digest,
    fingerprint,
    model_digest,
    questions_digest,
    recipe_content,
    surroundings,
)
from channelwise.comparison.task_questions import TaskQuestions
from channelwise.engine.walk import Progress, quantize_model
from channelwise.errors import InputError
from channelwise.evaluation.layer_errors import layer_errors
from channelwise.evaluation.measure import Questions, Results, measure
from channelwise.evaluation.speed import measure_speeds, token_count
from channelwise.model.batches import Batch
from channelwise.model.blocks import BlockList, find_blocks
from channelwise.recipe import Recipe
from channelwise.runtime.settling import settle


@dataclass(frozen=True)
class Run:
    """What one run found, JSON-able, and whether the cache had it.

    entry: `results` as `measure` gives them, with quantize_seconds of a recipe; of a recipe also `layers` and `sites`;
    `speed` with tokens_per_second and speed_over_fp, if that was wanted.
    """

    entry: Entry
    cached: bool


@dataclass(frozen=True)
class Runner:
    """A floating-point model, and what is asked of it and of its quantized copies.

    probes: a few samples, one a batch, for the layers' errors and for speed. seed: of the walk. speed: whether it is
    measured. cache: None measures everything. tasks: asked beside the questions.
    """

    model: nn.Module
    questions: Questions
    probes: list[Batch]
    seed: int
    speed: bool
    cache: Cache | None
    tasks: TaskQuestions | None = None

    def floating(self, progress: Progress) -> Run:
        """The model as it is."""
        progress("floating point", 0, 1)
        labelled = _prefixed(progress, "floating point")
        return self._run({"recipe": None}, lambda known: self._measured_floating(labelled, known))

    def recipe(self, recipe: Recipe, batches: list[Batch], progress: Progress) -> Run:
        """A copy of the model, quantized on the calibration batches; it is gone afterwards.

        Raises what goes wrong with the recipe's name before it: InputError, RuntimeError for anything else.
        """
        labelled = _prefixed(progress, recipe.name)
        content = {"recipe": recipe_content(recipe), "calibration": self._calibration(batches), "seed": self.seed}
        with _named(recipe.name):
            run = self._run(content, lambda known: self._measured(recipe, batches, labelled, known))
        if run.cached:
            labelled("from the cache", 1, 1)
        return run

    @cached_property
    def _blocks(self) -> BlockList:
        return find_blocks(self.model)

    @cached_property
    def _asked(self) -> Questions:
        """With the model's own answers beside them: only wanted where something is measured."""
        return self.questions.against(self.model)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What all runs of this comparison depend on."""
        return {
            "model": model_digest(self.model),
            "questions": questions_digest(self.questions),
            "tasks": None if self.tasks is None else self.tasks.digest(),
            "probes": batches_digest(self.probes),
            "surroundings": surroundings(next(self.model.parameters()).device),
        }

    def _calibration(self, batches: list[Batch]) -> str:
        return "" if self.cache is None else batches_digest(batches)

    def _run(self, parts: Mapping[str, Any], measured: Callable[[Entry], Entry]) -> Run:
        """The entry of these parts: the cache's if it has all that is wanted, else what `measured` makes of it."""
        if self.cache is None:
            return Run(measured({}), cached=False)
        key = fingerprint({**self._common, **parts})
        known = self.cache.read(key) or {}
        if "results" in known and ("speed" in known or not self.speed):
            return Run(known, cached=True)
        entry = measured(known)
        with suppress(OSError):  # a full disk costs the cache, not the comparison
            self.cache.write(key, entry)
        return Run(entry, cached=False)

    def _measured_floating(self, progress: Progress, known: Entry) -> Entry:
        entry = known or {"results": self._answers(self.model, progress)}
        return {**entry, "speed": self._speed()} if self.speed else entry

    def _measured(self, recipe: Recipe, batches: list[Batch], progress: Progress, known: Entry) -> Entry:
        """What is not known yet of a recipe's run."""
        quantized = copy.deepcopy(self.model)
        record = quantize_model(quantized, batches, recipe.to_plan(), seed=self.seed, progress=progress)
        entry = known
        if not known:
            progress("measuring", 0, 1)
            errors = layer_errors(self.model, quantized, self.probes)
            entry = {
                "results": {**self._answers(quantized, progress), "quantize_seconds": record.seconds},
                "layers": layer_facts(quantized, self._blocks, record, errors),
                "sites": site_facts(self._blocks, record),
            }
        if self.speed:
            progress("measuring speed", 0, 1)
            entry = {**entry, "speed": self._speed(quantized)}
        del quantized
        gc.collect()
        return entry

    def _answers(self, model: nn.Module, progress: Progress) -> Results:
        """All that is asked of a model."""
        results = measure(model, self._asked)
        if self.tasks is None:
            return results
        scores = self.tasks.scores(model, progress)
        return {**results, "seconds": results["seconds"] + scores.seconds, "tasks": scores.results}

    def _speed(self, quantized: nn.Module | None = None) -> Entry:
        """Of the quantized model beside the original, as a loaded checkpoint runs it; of the original without one."""
        if quantized is not None:
            settle(quantized)
        models = [self.model] if quantized is None else [self.model, quantized]
        sample = self.probes[0]
        speeds = measure_speeds(models, token_count(self.model, sample), sample)
        return {"tokens_per_second": asdict(speeds[-1]), "speed_over_fp": speeds[-1].over(speeds[0])}


@contextmanager
def _named(recipe: str) -> Iterator[None]:
    """Errors say which recipe they are about; bad input stays bad input."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"recipe {recipe}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"recipe {recipe}: {type(error).__name__}: {error}") from error


def _prefixed(progress: Progress, name: str) -> Progress:
    """Progress whose labels begin with the recipe's name."""
    return lambda label, done, total: progress(f"{name}: {label}", done, total)
