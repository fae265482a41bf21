"""What a run will take, told before it: from the model's shapes, and from its first block, really quantized."""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from channelwise.checkpoint.counting import counted
from channelwise.checkpoint.keeping import stage_tensors
from channelwise.checkpoint.shards import pieces_of, write_weight_file
from channelwise.engine.embedding import token_embedding
from channelwise.engine.fit import head_to_quantize
from channelwise.engine.keeping import StageOutcome
from channelwise.engine.memory import peak_resident, resident
from channelwise.engine.plan import Plan
from channelwise.engine.walk import Surroundings, Walker
from channelwise.engine.world import World
from channelwise.model.blocks import find_blocks
from channelwise.opening import StreamedWeights
from channelwise.quantizing import Order, Prepared, prepared

PIECE = 2**30


@dataclass(frozen=True)
class Forecast:
    """What a run will take, of this process where several share the work.

    blocks, sites, linears: how many of each will be quantized; those of a block times the blocks, and the head.
    largest_block: its bytes. bytes_before, bytes_after: of the model. samples, tokens: of the calibration set.
    hidden_bytes: of this process's hidden states; kept_bytes: those of them that stay in memory. disk_bytes: what
    working needs at most beside the output. peak_bytes: resident memory. seconds: of the walk; first: of the first
    block by phase.
    """

    blocks: int
    sites: int
    linears: int
    largest_block: int
    bytes_before: int
    bytes_after: int
    samples: int
    tokens: int
    hidden_bytes: int
    kept_bytes: int
    disk_bytes: int
    peak_bytes: int
    seconds: float
    first: dict[str, float] = field(default_factory=dict)
    streamed: bool = True


@dataclass
class _Trial:
    """A keeper that writes what a run would write, into a folder that is gone afterwards, and counts it."""

    folder: Path
    blocks: tuple[str, ...]
    finished: tuple[StageOutcome, ...] = ()
    stage_bytes: int = 0

    def hidden_folder(self, boundary: int) -> Path | None:
        folder = self.folder / str(boundary)
        folder.mkdir(exist_ok=True)
        return folder

    def finish(self, index: int, name: str, module: nn.Module, outcome: StageOutcome) -> None:
        tensors = stage_tensors(module, name, self.blocks)
        self.stage_bytes = counted((), tensors.values()).tensor_bytes
        for number, piece in enumerate(pieces_of(tensors, PIECE)):
            write_weight_file(piece, self.folder / f"{number}.safetensors")


def forecast(order: Order, world: World) -> Forecast:
    """Quantizes the first block of a model, keeps nothing, and tells what the whole will take.

    Raises InputError as `quantizing.write_quantized` does.
    """
    ready = prepared(order, world)
    model = ready.source.model
    blocks = find_blocks(model)
    names = blocks.names
    sizes = [_block_bytes(ready, name) for name in names]
    base = resident()
    parent = next(folder for folder in order.output.resolve().parents if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".channelwise-", dir=parent, ignore_cleanup_errors=True) as folder:
        trial = _Trial(Path(folder), names)
        around = Surroundings(ready.source.weights, trial, world, order.activation_memory)
        began = time.perf_counter()
        with torch.no_grad():
            walker = Walker(model, blocks, ready.plan, ready.batches, order.seed, around)
            reading = time.perf_counter() - began
            outcome = walker.stage(0)
    seconds = sum(outcome.seconds.values())
    outside = ready.before.model_bytes - sum(sizes)
    head = int(head_to_quantize(model, ready.plan) is not None)
    ratio = trial.stage_bytes / sizes[0]
    hidden = walker.hidden.total_bytes
    # Of tables outside the blocks it is not known; they shrink about as a block does.
    after = int(ratio * sum(sizes) + outside - (1 - ratio) * _table_bytes(model, ready.plan))
    growth = peak_resident() - base
    return Forecast(
        blocks=len(names),
        sites=len(outcome.records) * len(names) + head,
        linears=sum(len(record.linears) for record in outcome.records) * len(names) + head,
        largest_block=max(sizes),
        bytes_before=ready.before.model_bytes,
        bytes_after=after,
        samples=sum(len(next(iter(batch.values()))) for batch in ready.batches),
        tokens=int(walker.tokens),
        hidden_bytes=hidden,
        kept_bytes=walker.hidden.bytes_in_memory,
        # The hidden states before and behind a block, and the checkpoint once more where links are not to be had.
        disk_bytes=2 * hidden * world.size + after,
        # Memory is that of one block, whichever; a larger one takes more of all that grows with it.
        peak_bytes=base + int(growth * max(sizes) / sizes[0]),
        # What is outside the blocks is read twice and written.
        seconds=reading * 2 + seconds * sum(sizes) / sizes[0],
        first=outcome.seconds,
        streamed=ready.source.weights.streamed,
    )


def _block_bytes(ready: Prepared, name: str) -> int:
    weights = ready.source.weights
    if isinstance(weights, StreamedWeights):
        return weights.stream.bytes_of(name)
    return sum(tensor.nbytes for tensor in ready.source.model.get_submodule(name).parameters())


def _table_bytes(model: nn.Module, plan: Plan) -> int:
    """Bytes of the head and of the token embedding, of those that will be quantized; what they share counts once."""
    head = head_to_quantize(model, plan)
    tables = [] if head is None else [model.get_submodule(head)]
    if plan.embedding is not None and (table := token_embedding(model)) is not None:
        tables.append(table)
    return sum(weight.nbytes for weight in {weight for table in tables for weight in table.parameters()})
