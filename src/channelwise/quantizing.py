"""A model quantized into a checkpoint block by block, by one process or more; a killed run can be gone on with."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise.checkpoint.counting import counted
from channelwise.checkpoint.format import from_config
from channelwise.checkpoint.identity import Identity, differences
from channelwise.checkpoint.keeping import StageKeeper
from channelwise.checkpoint.shards import stored_sizes
from channelwise.checkpoint.working import WorkingDirectory
from channelwise.checkpoint.writer import RECORD_FILE, check_output, write_checkpoint_texts
from channelwise.comparison.fingerprints import batches_digest, model_digest, versions
from channelwise.engine.fit import asks_for_importance, check_plan, taken_apart
from channelwise.engine.plan import Plan, SiteRecord, WalkRecord
from channelwise.engine.walk import Progress, Surroundings, quantize_model
from channelwise.engine.world import World
from channelwise.errors import InputError, NotStreamableError
from channelwise.evaluation.sizes import Sizes, bits_per_weight, model_sizes
from channelwise.model.batches import Batch, Data
from channelwise.model.blocks import find_blocks
from channelwise.model.fingerprint import difference
from channelwise.model.images import Images
from channelwise.opening import ModelSource, Opened, StreamedWeights, opened_to_quantize, opened_to_stream
from channelwise.recipe import Recipe
from channelwise.runtime.linear import QuantizedLinear

PIXEL_DIMENSIONS = 4
OUTSIDE = "outside"
"""In a model's identity: the digest of what is outside its blocks."""


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
    ready = prepared(order, world)
    try:
        return _write(order, ready, world)
    except NotStreamableError:
        return _write(order, _prepared(order, ready.plan, world, streamed=False), world)


def prepared(order: Order, world: World) -> Prepared:
    """Everything that comes before the work: the model opened, streamed if it can be, and the calibration set read.

    Raises InputError for all that can be known to be wrong by then.
    """
    with world.agree():
        if not order.resume:
            check_output(order.output, order.overwrite)
        plan = order.recipe.to_plan()
    try:
        return _prepared(order, plan, world, streamed=True)
    except NotStreamableError:
        return _prepared(order, plan, world, streamed=False)


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
        unfused = taken_apart(source.model) if source.weights.streamed else source.model
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
        order.output, identity, resume=order.resume, overwrite=order.overwrite, first=first, explain=_changes
    ) as working:
        try:
            yield working
        except KeyboardInterrupt as interrupt:
            if count := len(working.finished):
                kept = "1 stage is kept" if count == 1 else f"{count} stages are kept"
                interrupt.add_note(f"{kept}; the same command with --resume goes on")
            raise


def _identity(order: Order, prepared: Prepared) -> Identity:
    """All that the checkpoint depends on."""
    weights = prepared.source.weights
    model: Any = None
    if isinstance(weights, StreamedWeights):
        # What is outside the blocks is read before the first one and written behind the last, so no stage tells of it.
        model = {**weights.stream.fingerprint(), OUTSIDE: weights.stream.digest("")}
    recipe = order.recipe.model_dump(mode="json", exclude={"summary", "paper", "calibration"})
    return {
        "model": model_digest(prepared.source.model) if model is None else model,
        "recipe": {**recipe, "files": order.recipe.own_methods()},
        "data": batches_digest(prepared.batches),
        "seed": order.seed,
        "version": versions()["channelwise"],
    }


def _changes(old: Identity, new: Identity) -> tuple[str, ...]:
    """As `differences`, but of a streamed model's files in the words of its fingerprint."""
    before, after = old.get("model"), new["model"]
    if before == after or not (isinstance(before, dict) and isinstance(after, dict)):
        return differences(old, new)
    told = difference(before, after) or "what is outside the model's blocks has other values"
    return (told, *differences({**old, "model": None}, {**new, "model": None}))


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
    record = WalkRecord(sites, 0.0, stored["embedding"], floating=tuple(stored["floating"]))
    after = _sizes_of(order.output)
    return Written(prepared.source, record, prepared.before, after, len(find_blocks(prepared.source.model).names) + 1)


def _sizes_of(checkpoint: Path) -> Sizes:
    """The sizes of a checkpoint's model, of which nothing is loaded."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    schemes = from_config(config["quantization_config"], "config.json").schemes.values()
    counts = counted(QuantizedLinear(scheme, device="meta") for scheme in schemes)
    stored = sum(sum(stored_sizes(file).values()) for file in checkpoint.glob("*.safetensors"))
    return Sizes(stored, counts.bits_per_weight)
