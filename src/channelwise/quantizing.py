"""A model quantized into a checkpoint block by block, by one process or more; a killed run can be gone on with."""

import copy
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise import __version__
from channelwise.checkpoint.identity import differences
from channelwise.checkpoint.keeping import StageKeeper
from channelwise.checkpoint.working import WorkingDirectory
from channelwise.checkpoint.writer import RECORD_FILE, check_output, write_checkpoint_texts
from channelwise.comparison.fingerprints import batches_digest, model_digest
from channelwise.engine.plan import Plan, SiteRecord, WalkRecord
from channelwise.engine.walk import Progress, Surroundings, asks_for_importance, check_plan, quantize_model
from channelwise.engine.world import World
from channelwise.errors import InputError, NotStreamableError
from channelwise.evaluation.sizes import Sizes, bits_per_weight, model_sizes
from channelwise.model.batches import Batch, Data
from channelwise.model.blocks import find_blocks
from channelwise.model.experts import unfuse_experts
from channelwise.model.images import Images
from channelwise.opening import ModelSource, Opened, StreamedWeights, opened_to_quantize, opened_to_stream
from channelwise.recipe import Recipe

PIXEL_DIMENSIONS = 4


@dataclass(frozen=True)
class Order:
    """What is to be done, as `api.quantize` takes it; data: as `read_data` gives it."""

    model: ModelSource
    recipe: Recipe
    data: Data
    output: Path
    tokenizer: Any = None
    processor: Any = None
    samples: int | None = None
    length: int | None = None
    seed: int = 0
    device: str = "cpu"
    overwrite: bool = False
    resume: bool = False
    activation_memory: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything checked and read before the long work."""

    source: Opened
    plan: Plan
    batches: list[Batch]
    before: Sizes


@dataclass(frozen=True)
class Written:
    """What a run has written. source: as it was opened; its model is quantized if it was whole and nothing resumed.

    resumed: how many stages an earlier run had finished.
    """

    source: Opened
    record: WalkRecord
    before: Sizes
    after: Sizes
    resumed: int = 0


def write_quantized(order: Order, world: World) -> Written:
    """Quantizes a model into `order.output`; all of the world's processes call it with the same order.

    Raises InputError before anything is written.
    """
    with world.agree():
        if not order.resume:
            check_output(order.output, order.overwrite)
        plan = order.recipe.to_plan()
    try:
        return _write(order, _prepared(order, plan, world, streamed=True), world)
    except NotStreamableError:
        return _write(order, _prepared(order, plan, world, streamed=False), world)


def _prepared(order: Order, plan: Plan, world: World, *, streamed: bool) -> Prepared:
    source: Opened | None = None
    with world.agree():
        try:
            source = _opened(order, plan, streamed)
        except NotStreamableError:
            # The same on every rank: no error to agree on.
            if not streamed:
                raise
    if source is None:
        raise NotStreamableError(f"{order.model} has to be loaded whole")
    with world.agree():
        unfused = source.model
        if source.weights.streamed:
            unfused = copy.deepcopy(source.model)
            unfuse_experts(unfused)
        check_plan(unfused, find_blocks(unfused), plan)
        batches = source.calibration(order.data, order.recipe.calibration, order.samples, order.length, order.seed)
    before = model_sizes(source.model)
    if isinstance(source.weights, StreamedWeights):
        before = Sizes(source.weights.stream.total_bytes, bits_per_weight(unfused))
    return Prepared(source, plan, batches, before)


def _opened(order: Order, plan: Plan, streamed: bool) -> Opened:
    """The model, streamed if that is wanted. Raises NotStreamableError where it is and cannot be."""
    if not streamed:
        return opened_to_quantize(order.model, order.device, tokenizer=order.tokenizer, processor=order.processor)
    if isinstance(order.model, torch.nn.Module) or _is_pictures(order.data):
        raise NotStreamableError("what is in memory or looks at images is quantized whole")
    source = opened_to_stream(order.model, order.device, tokenizer=order.tokenizer)
    if asks_for_importance(source.model, plan):
        raise NotStreamableError("its recipe weighs errors by gradients through the whole model")
    return source


def _is_pictures(data: Data) -> bool:
    return isinstance(data, Images) or (isinstance(data, torch.Tensor) and data.ndim == PIXEL_DIMENSIONS)


def _write(order: Order, prepared: Prepared, world: World) -> Written:
    source, weights = prepared.source, prepared.source.weights
    stream = weights.stream if isinstance(weights, StreamedWeights) else None
    identity = _identity(order, prepared)
    with ExitStack() as stack:
        working = _joined_directory(stack, order, identity, world)
        blocks = find_blocks(source.model).names
        keeper = StageKeeper(working, blocks, (lambda name: "") if stream is None else stream.digest, world)
        if working.already_finished:
            return _found(order, prepared)
        with world.agree():
            _check_sources(keeper, world)
        resumed = len(keeper.finished)
        around = Surroundings(weights, keeper, world, order.activation_memory)
        record = quantize_model(
            source.model, prepared.batches, prepared.plan, seed=order.seed, progress=order.progress, surroundings=around
        )
        counted = keeper.counted
        after = Sizes(counted.tensor_bytes, counted.bits_per_weight)

        def write_texts(folder: Path) -> None:
            write_checkpoint_texts(
                source.model,
                source.tokenizer,
                folder,
                format=keeper.format(order.recipe.model_dump(mode="json")),
                sizes=counted,
                source_name=source.name(),
                record=stored_record(record),
                run=working.run,
            )

        with world.agree():
            working.assemble(write_texts)
        world.barrier()
    return Written(source, record, prepared.before, after, resumed)


def _joined_directory(stack: ExitStack, order: Order, identity: dict[str, Any], world: World) -> WorkingDirectory:
    """The working directory, opened by the first rank and then by the others."""
    opened: WorkingDirectory | None = None
    for turn in (True, False):
        with world.agree():
            if (world.rank == 0) == turn:
                opened = stack.enter_context(_directory(order, identity, first=turn))
    assert opened is not None
    return opened


@contextmanager
def _directory(order: Order, identity: dict[str, Any], *, first: bool) -> Iterator[WorkingDirectory]:
    with WorkingDirectory.opened(
        order.output, identity, resume=order.resume, overwrite=order.overwrite, first=first, explain=differences
    ) as working:
        try:
            yield working
        except KeyboardInterrupt as interrupt:
            if working.finished:
                interrupt.add_note(f"{len(working.finished)} stages are kept; the same command with --resume goes on")
            raise


def _identity(order: Order, prepared: Prepared) -> dict[str, Any]:
    """All that the checkpoint depends on."""
    weights = prepared.source.weights
    model: Any = weights.stream.fingerprint() if isinstance(weights, StreamedWeights) else None
    return {
        "model": model_digest(prepared.source.model) if model is None else model,
        "recipe": order.recipe.model_dump(mode="json", exclude={"summary", "paper", "calibration"}),
        "data": batches_digest(prepared.batches),
        "seed": order.seed,
        "version": __version__,
    }


def _check_sources(keeper: StageKeeper, world: World) -> None:
    """Raises InputError if the weights of a finished stage are not those that it was made of; ranks share the work."""
    for stage in keeper.working.finished[world.rank :: world.size]:
        if keeper.source(stage.name) != stage.source:
            part = stage.name or "what is outside the blocks"
            raise InputError(
                f"the weights of {part} have changed since the run began; start again with --overwrite instead of "
                "--resume"
            )


def stored_record(record: WalkRecord) -> dict[str, Any]:
    """What a checkpoint keeps of the record: all but the times, so that the same work gives the same files."""
    return {name: value for name, value in asdict(record).items() if name not in ("seconds", "phases")}


def _found(order: Order, prepared: Prepared) -> Written:
    """What an earlier run of the same order has written."""
    stored = json.loads((order.output / RECORD_FILE).read_text(encoding="utf-8"))
    sites = tuple(SiteRecord(**{**site, "linears": tuple(site["linears"])}) for site in stored["sites"])
    record = WalkRecord(sites, 0.0, stored["embedding"])
    after = Sizes(sum(path.stat().st_size for path in order.output.glob("*.safetensors")), None)
    return Written(prepared.source, record, prepared.before, after, len(find_blocks(prepared.source.model).names) + 1)
