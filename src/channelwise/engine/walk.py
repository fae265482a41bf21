"""The walk: block by block, level by level, statistics, transforms, quantized layers; then on to the next block."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from channelwise.engine.embedding import quantize_embedding
from channelwise.engine.experts import like_sites
from channelwise.engine.fisher import output_importance
from channelwise.engine.fit import asks_for_importance, head_to_quantize, left_as_it_is, taken_apart
from channelwise.engine.hidden import HiddenStates, fitting, nowhere
from channelwise.engine.keeping import InPlace, Keeper, KeepNothing, StageOutcome, Weights, loaded
from channelwise.engine.memory import give_back_free
from channelwise.engine.phases import Phases
from channelwise.engine.plan import Plan, SiteRecord, WalkRecord
from channelwise.engine.sampling import TokenSampler, items_of, search_samples
from channelwise.engine.stage import Replacements, Stage, install, quantize_sites
from channelwise.engine.tail import Tail, head_site
from channelwise.engine.world import ALONE, World
from channelwise.errors import NotStreamableError, NumericalError
from channelwise.methods.site import Importance
from channelwise.model.attention import use_quantized_attention
from channelwise.model.blocks import BlockList, find_blocks
from channelwise.model.calls import BlockCall, Captured, capture, kind_of
from channelwise.model.experts import unfuse_experts
from channelwise.model.linears import linear_names, replace_module
from channelwise.model.sites import Site, discover_sites, hold_again
from channelwise.model.ties import forget_ties
from channelwise.runtime.embedding import QuantizedEmbedding

Batch = dict[str, torch.Tensor]
Progress = Callable[[str, int, int], None]

PROBE_SAMPLES = 2
PROBE_TOKENS = 16
SEARCH_COST = 8.0
"""How many times as much work a sample makes that searches look at, about: ranks shall have as many of them each."""
PROBE = -1
"""The number of the few tokens that sites are found with, among the samples."""


@dataclass(frozen=True)
class Surroundings:
    """What a walk works with beside the model.

    weights: where they come from. keeper: what finished stages and hidden states outlive the walk in. world: the
    processes that share the work. activation_memory: bytes of hidden states that stay in memory, None for all.
    """

    weights: Weights = field(default_factory=InPlace)
    keeper: Keeper = field(default_factory=KeepNothing)
    world: World = ALONE
    activation_memory: int | None = None


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    batches: Sequence[Batch],
    plan: Plan,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    surroundings: Surroundings | None = None,
) -> WalkRecord:
    """Quantizes every linear layer of the model's blocks in place.

    batches: model inputs without padding. progress(label, done, total) is told of every finished block.
    Memory beside the model, or beside one block where weights are streamed: the hidden states of the calibration set
    at one block boundary, one block's statistics. A streamed model is on the meta device again when it is done.
    Raises InputError for a plan that does not fit the model and NumericalError for numbers that are not finite,
    both before the block that they concern is changed; NotStreamableError for a model that has to be whole in memory.
    """
    started = time.perf_counter()
    around = surroundings or Surroundings()
    blocks = find_blocks(model)
    floating = left_as_it_is(taken_apart(model) if around.weights.streamed else model, blocks, plan)
    report = progress or (lambda label, done, total: None)
    names = (*blocks.names, "")
    stages = len(blocks.names) + (head_to_quantize(model, plan) is not None)
    outcomes = list(around.keeper.finished)
    if len(outcomes) < len(names):
        report("reading the calibration data", min(len(outcomes), stages), stages)
        walker = Walker(model, blocks, plan, batches, seed, around)
        for index in range(len(outcomes), len(names)):
            label = f"block {index + 1} of {len(blocks.names)}" if names[index] else "output layer"
            if names[index] or stages > len(blocks.names):
                report(label, index, stages)
            outcomes.append(walker.stage(index))
    report("done", stages, stages)
    forget_ties(model)
    records = tuple(record for outcome in outcomes for record in outcome.records)
    seconds = {phase: sum(outcome.seconds.get(phase, 0.0) for outcome in outcomes) for phase in Phases().seconds}
    return WalkRecord(records, time.perf_counter() - started, outcomes[-1].notes, seconds, floating)


class Walker:
    """The state of one walk: the calls of every block, and the hidden states at the current block boundary.

    Of the batches, a rank runs its share only; the few tokens to find sites with are every rank's.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: BlockList,
        plan: Plan,
        batches: Sequence[Batch],
        seed: int,
        around: Surroundings,
    ) -> None:
        self.model, self.blocks, self.plan, self.batches, self.around = model, blocks, plan, batches, around
        self.phases = Phases()
        self.sites: dict[Hashable, tuple[Site, ...]] = {}
        self.probe = _probe_batch(batches[0])
        device, folder = next(iter(self.probe.values())).device, around.keeper.hidden_folder
        self.hidden = HiddenStates(fitting(around.activation_memory, device), folder, device)
        # The same on every rank, so one of them keeps it.
        self.probe_hidden = HiddenStates(None, folder if around.world.rank == 0 else nowhere, device)
        if around.weights.streamed and asks_for_importance(model, plan):
            raise NotStreamableError("its recipe weighs errors by gradients through the whole model")
        with self.phases.of("read"):
            around.weights.load("")
        self.embedding: dict[str, float | str] | None = None
        self.tokens = self._count_tokens()
        tokens = [self.tokens * items / sum(items_of(batches)) for items in items_of(batches)]
        search = search_samples(tokens, plan.search_tokens, seed)
        costs = [count * (SEARCH_COST if sample in search else 1.0) for sample, count in enumerate(tokens)]
        self.own = list(around.world.share(costs))
        self.search = [sample for sample in search if sample in self.own]
        self.sampler = TokenSampler(min(1.0, plan.search_tokens / self.tokens), seed)
        self.importance = self._importance(seed)
        if plan.attention_bits is not None:
            use_quantized_attention(model, plan.attention_bits)
        if plan.calibrate_on == "quantized":
            self.finish_embedding()
        self.captured = self._capture()
        self._begin()
        self.embeddings = _quantized_embeddings(model)
        around.weights.release("")

    def stage(self, index: int) -> StageOutcome:
        """Quantizes the block of this number, or behind the last one what is outside the blocks, and keeps it."""
        name = (*self.blocks.names, "")[index]
        weights = self.around.weights
        with self.phases.of("read"):
            weights.load(name)
        try:
            records = self._quantize_block(index, name) if name else self._quantize_outside()
            outcome = StageOutcome(tuple(records), {} if name else self.finish_embedding(), self.phases.taken())
            with self.phases.of("write"):
                self.around.keeper.finish(index, name, self.model.get_submodule(name), outcome)
        finally:
            weights.release(name)
        return replace(outcome, seconds={**outcome.seconds, "write": self.phases.taken()["write"]})

    def finish_embedding(self) -> dict[str, float | str]:
        """Quantizes the token embedding, unless that is done or not wanted; what was chosen."""
        if self.embedding is None:
            plan = self.plan.embedding
            self.embedding = {} if plan is None else quantize_embedding(self.model, plan)
        return self.embedding

    def _capture(self) -> Captured:
        weights = self.around.weights
        in_place = partial(loaded, weights) if weights.streamed else None
        return capture(self.model, self.blocks, [self.probe, *(self.batches[own] for own in self.own)], in_place)

    def _begin(self) -> None:
        """Puts the hidden states where the walk begins: before the first block, or where an earlier walk came to."""
        finished = len(self.around.keeper.finished)
        if finished:
            self.hidden.restore(finished, self.own)
            self.probe_hidden.restore(finished, [PROBE], self.around.keeper.hidden_folder)
            return
        self.probe_hidden[PROBE] = self.captured.calls[0][0].hidden()
        for place, sample in enumerate(self.own):
            calls = self.captured.calls[place + 1]
            self.hidden[sample] = calls[0].hidden()
            calls[0] = calls[0].with_hidden(None)

    def _run(self, index: int, block: nn.Module, sample: int) -> torch.Tensor:
        """The block's output for one of this rank's samples."""
        return self.captured.calls[self.own.index(sample) + 1][index].run(block, self.hidden[sample])

    def _quantize_block(self, index: int, name: str) -> list[SiteRecord]:
        """Quantizes one block and moves the hidden states behind it."""
        block = self.model.get_submodule(name)
        unfuse_experts(block)
        with self.phases.of("sites"):
            sites = self._sites(block, self.captured.calls[0][index].with_hidden(self.probe_hidden[PROBE]))
        kept = tuple(s for s in sites if not all(self.plan.excludes(f"{name}.{linear}") for linear in s.linears))
        stage = self._stage(block, name, kept, lambda sample: self._run(index, block, sample))
        return self._quantize_stage(stage, lambda: self._advance(block, index, name))

    def _sites(self, block: nn.Module, call: BlockCall) -> tuple[Site, ...]:
        """The block's sites; those of an earlier block that is built alike, if they hold here."""
        kind = kind_of(block)
        sites = self.sites.get(kind)
        if sites is None or not hold_again(block, call, sites):
            sites = self.sites[kind] = discover_sites(block, call)
        return sites

    def _quantize_outside(self) -> list[SiteRecord]:
        """Quantizes the layer behind the blocks that gives the logits, and the embedding."""
        for embedding, quantized in self.embeddings.items():
            replace_module(self.model, embedding, quantized)
        name = head_to_quantize(self.model, self.plan)
        if name is None:
            return []
        tail = Tail(self.model, self.blocks, self.captured.templates)
        sites = (head_site(self.model, name),)
        stage = self._stage(self.model, "", sites, lambda sample: tail.run(self.batches[sample], self.hidden[sample]))
        return self._quantize_stage(stage, lambda: None)

    def _stage(self, root: nn.Module, name: str, sites: tuple[Site, ...], run: Callable[[int], object]) -> Stage:
        return Stage(
            root=root,
            name=name,
            sites=sites,
            run=run,
            samples=self.own,
            search=self.search,
            sampler=self.sampler,
            importance=self.importance,
            likes=like_sites(root, sites),
            world=self.around.world,
            streamed=self.around.weights.streamed,
            phases=self.phases,
        )

    def _quantize_stage(self, stage: Stage, advance: Callable[[], None]) -> list[SiteRecord]:
        """All sites of a stage, in the plan's order of looking and replacing; then on behind it."""
        records: list[SiteRecord] = []
        later: Replacements = {}
        for sites in self._groups(stage.sites):
            # All choices are made on floating-point layers before any of this group is replaced.
            found, layers = quantize_sites(stage, sites, self.plan)
            records += found
            if self.plan.calibrate_on == "original":
                later |= layers
            else:
                install(stage, layers)
                if stage.streamed and self.plan.weights.needs_hessian:
                    # Beside the next Hessian there shall be no more than one form of their codes.
                    for layer in layers.values():
                        layer.keep_packed()
        give_back_free()
        with self.phases.of("advance"):
            advance()
        install(stage, later)
        # What the integer products prepared would otherwise stay in memory for every stage that is done.
        stage.keep_rows()
        give_back_free()
        return records

    def _groups(self, sites: Sequence[Site]) -> list[list[Site]]:
        """Sites that are quantized at once: level by level, or all, if none shall see another's rounding."""
        if not self.plan.sequential or self.plan.calibrate_on == "original":
            return [list(sites)]
        return [[site for site in sites if site.level == level] for level in sorted({site.level for site in sites})]

    def _advance(self, block: nn.Module, index: int, name: str) -> None:
        self.hidden.advance()
        self.probe_hidden.advance()
        with self.around.world.agree():
            probe = self.captured.calls[0][index].run(block, self.probe_hidden[PROBE])
            self.probe_hidden[PROBE] = probe
            finite = [torch.isfinite(probe).all()]
            for sample in self.own:
                state = self._run(index, block, sample)
                self.hidden[sample] = state
                finite.append(torch.isfinite(state).all())
            # One look at the device for all of them.
            if not bool(torch.stack(finite).all()):
                original = self.plan.calibrate_on == "original"
                advice = "check the model's weights and dtype" if original else "after quantization; try more bits"
                raise NumericalError(f"{name}: its output is not finite{',' if original else ''} {advice}")

    def _count_tokens(self) -> float:
        """How many tokens the calibration set has; how many an image is made of, only the model knows."""
        ids = [batch["input_ids"].numel() for batch in self.batches if "input_ids" in batch]
        if ids:
            return float(sum(ids))
        hidden = capture(self.model, self.blocks, [self.probe]).calls[0][0].hidden()
        items = sum(len(next(iter(batch.values()))) for batch in self.batches)
        return hidden[..., 0].numel() / len(next(iter(self.probe.values()))) * items

    def _importance(self, seed: int) -> dict[str, Importance]:
        """The Fisher information of every layer's output, where the plan's objective asks for it."""
        if not asks_for_importance(self.model, self.plan):
            return {}
        first = self.model.get_submodule(self.blocks.names[0])
        names = [f"{block}.{n}" for block in self.blocks.names for n in linear_names(self.model.get_submodule(block))]
        head = head_to_quantize(self.model, self.plan)
        return output_importance(
            self.model, first, [*names, *([head] if head else [])], self.batches, self.sampler, seed
        )


def _quantized_embeddings(model: nn.Module) -> dict[str, nn.Module]:
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, QuantizedEmbedding)}


def _probe_batch(batch: Batch) -> Batch:
    """A few tokens of a few samples, to find the sites with; images are taken whole."""
    few = {key: value[:PROBE_SAMPLES] for key, value in batch.items()}
    if "pixel_values" in few:
        return few
    return {key: value[:, :PROBE_TOKENS] if value.dim() == 2 else value for key, value in few.items()}
