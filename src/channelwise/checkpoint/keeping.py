"""What a walk finishes, kept as files of a working directory; in the end they are a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from channelwise.checkpoint.counting import Counted, counted
from channelwise.checkpoint.format import CheckpointFormat, from_config, to_config
from channelwise.checkpoint.journal import FinishedStage
from channelwise.checkpoint.shards import checkpoint_tensors
from channelwise.checkpoint.working import WorkingDirectory
from channelwise.engine.keeping import StageOutcome
from channelwise.engine.plan import SiteRecord
from channelwise.engine.world import ALONE, World
from channelwise.model.experts import UnfusedExperts
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear

_Thing = TypeVar("_Thing")

LARGEST_PIECE = 2**30
"""Bytes of the tensors that are written into one file, unless one alone has more."""


@dataclass
class StageKeeper:
    """The keeper (`engine.keeping.Keeper`) of a run that writes a checkpoint.

    blocks: names of the model's blocks, which are stages of their own. source(name): the digest of the weights that a
    stage came from. world: each stage is written by one of its ranks, in turn.
    """

    working: WorkingDirectory
    blocks: tuple[str, ...]
    source: Callable[[str], str] = lambda name: ""
    world: World = ALONE
    finished: tuple[StageOutcome, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.finished = tuple(_outcome(stage.content) for stage in self.working.finished)

    def hidden_folder(self, boundary: int) -> Path | None:
        """Where the hidden states before block `boundary` lie."""
        return self.working.hidden(boundary)

    def finish(self, index: int, name: str, module: nn.Module, outcome: StageOutcome) -> None:
        """Writes a stage, and notes it once all ranks have kept what is behind it. Raises DiskError."""
        written: FinishedStage | None = None
        with self.world.agree():
            if self.world.rank == index % self.world.size:
                written = self._written(index, name, module, outcome)
        [stage] = [found for found in self.world.gathered(written) if found is not None]
        with self.world.agree():
            self.working.finish(stage)
        self.world.barrier()

    def _written(self, index: int, name: str, module: nn.Module, outcome: StageOutcome) -> FinishedStage:
        tensors = stage_tensors(module, name, self.blocks)
        modules = _of_stage(dict(module.named_modules(remove_duplicate=False)), name, self.blocks)
        files, size = self.working.write_stage(index, tensors, LARGEST_PIECE)
        content = {
            "records": [asdict(record) for record in outcome.records],
            "notes": outcome.notes,
            "seconds": outcome.seconds,
            "format": to_config(_format_of(modules)),
            "counted": asdict(counted(modules.values(), tensors.values())),
        }
        return FinishedStage(index, name, files, size, self.source(name), content)

    @property
    def counted(self) -> Counted:
        """Of all finished stages together."""
        return sum((Counted(**stage.content["counted"]) for stage in self.working.finished), Counted())

    def format(self, recipe: Mapping[str, Any]) -> CheckpointFormat:
        """What config.json has to say of all finished stages."""
        parts = [from_config(stage.content["format"], "journal.jsonl") for stage in self.working.finished]
        return CheckpointFormat(
            {name: scheme for part in parts for name, scheme in part.schemes.items()},
            dict(recipe),
            tuple(name for part in parts for name in part.unfused_experts),
            recipe.get("attention_bits"),
            {name: scheme for part in parts for name, scheme in part.embeddings.items()},
        )


def stage_tensors(module: nn.Module, name: str, blocks: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A stage's tensors under their full names; of the model itself, "", those outside the blocks."""
    return _of_stage(checkpoint_tensors(module), name, blocks)


def _of_stage(named: Mapping[str, _Thing], name: str, blocks: tuple[str, ...]) -> dict[str, _Thing]:
    """Things by their names within a stage's module, under their full names; the rest of the model has no block's."""
    if name:
        return {f"{name}.{key}": thing for key, thing in named.items()}
    inside = tuple(f"{block}." for block in blocks)
    return {key: thing for key, thing in named.items() if not key.startswith(inside)}


def _format_of(modules: Mapping[str, nn.Module]) -> CheckpointFormat:
    return CheckpointFormat(
        {name: part.scheme for name, part in modules.items() if isinstance(part, QuantizedLinear)},
        unfused_experts=tuple(name for name, part in modules.items() if isinstance(part, UnfusedExperts)),
        embeddings={name: part.scheme for name, part in modules.items() if isinstance(part, QuantizedEmbedding)},
    )


def _outcome(content: Mapping[str, Any]) -> StageOutcome:
    records = tuple(SiteRecord(**{**record, "linears": tuple(record["linears"])}) for record in content["records"])
    return StageOutcome(records, dict(content["notes"]), dict(content["seconds"]))
