"""The walk: block by block, level by level, statistics, transforms, quantized layers; then on to the next block."""

import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from channelwise.engine.embedding import quantize_embedding
from channelwise.engine.fisher import output_importance
from channelwise.engine.plan import Plan, SiteRecord, WalkRecord
from channelwise.engine.sampling import TokenSampler
from channelwise.engine.stage import Replacements, Stage, install, quantize_sites
from channelwise.engine.tail import Tail, head_name, head_site
from channelwise.errors import InputError, NumericalError
from channelwise.methods.site import Importance
from channelwise.model.attention import use_quantized_attention
from channelwise.model.batches import is_causal
from channelwise.model.blocks import BlockList, find_blocks
from channelwise.model.calls import capture_calls
from channelwise.model.linears import is_linear, linear_names, weight_matrix
from channelwise.model.sites import Site, discover_sites
from channelwise.model.ties import forget_ties
from channelwise.runtime.linear import QuantizedLinear

Batch = dict[str, torch.Tensor]
Progress = Callable[[str, int, int], None]

PROBE_SAMPLES = 2
PROBE_TOKENS = 16


@torch.no_grad()
def quantize_model(
    model: nn.Module, batches: Sequence[Batch], plan: Plan, *, seed: int = 0, progress: Progress | None = None
) -> WalkRecord:
    """Quantizes every linear layer of the model's blocks in place.

    batches: model inputs without padding. progress(label, done, total) is told of every finished block.
    Memory beside the model: the hidden states of the calibration set at one block boundary, one block's statistics.
    Raises InputError for a plan that does not fit the model and NumericalError for numbers that are not finite,
    both before the block that they concern is changed.
    """
    started = time.perf_counter()
    blocks = find_blocks(model)
    check_plan(model, blocks, plan)
    report = progress or (lambda label, done, total: None)
    stages = len(blocks.names) + (head_to_quantize(model, plan) is not None)
    report("reading the calibration data", 0, stages)
    walker = _Walker(model, blocks, plan, batches, seed)
    records: list[SiteRecord] = []
    for index, name in enumerate(blocks.names):
        report(f"block {index + 1} of {len(blocks.names)}", index, stages)
        records += walker.quantize_block(index, name)
    if stages > len(blocks.names):
        report("output layer", len(blocks.names), stages)
        records += walker.quantize_head()
    report("done", stages, stages)
    embedding = walker.finish_embedding()
    forget_ties(model)
    return WalkRecord(tuple(records), time.perf_counter() - started, embedding)


def head_to_quantize(model: nn.Module, plan: Plan) -> str | None:
    """The full name of the output layer, if the model has one and the plan does not leave it in floating point."""
    name = head_name(model) if plan.head is not None else None
    return None if name is None or plan.excludes(name) else name


def check_plan(model: nn.Module, blocks: BlockList, plan: Plan) -> None:
    """Raises InputError if every linear layer is excluded, or a group of the plan is wider than a layer."""
    total = 0
    for prefix, block in zip(blocks.names, blocks.modules(model), strict=True):
        for name, module in block.named_modules():
            full = f"{prefix}.{name}"
            if not is_linear(module) or plan.excludes(full):
                continue
            total += 1
            size = plan.weights.granularity.group_size
            rows, columns = weight_matrix(module).shape
            along = rows if plan.weights.granularity.kind == "column_group" else columns
            if size is not None and size > along:
                raise InputError(
                    f"{full}: groups of {size} do not fit its {along} channels; choose a smaller group_size"
                )
    if total == 0:
        raise InputError("the recipe's `exclude` leaves no linear layer to quantize; exclude less")


class _Walker:
    """The state of one walk: the calls of every block, and the hidden states at the current block boundary."""

    def __init__(self, model: nn.Module, blocks: BlockList, plan: Plan, batches: Sequence[Batch], seed: int) -> None:
        self.model, self.blocks, self.plan, self.batches = model, blocks, plan, batches
        self.probe = _probe_batch(batches[0])
        self.sampler = TokenSampler(min(1.0, plan.search_tokens / self._count_tokens()), seed)
        self.importance = self._importance(seed)
        if plan.attention_bits is not None:
            use_quantized_attention(model, plan.attention_bits)
        self.embedding: dict[str, float | str] | None = None
        if plan.calibrate_on == "quantized":
            self.finish_embedding()
        self.calls = capture_calls(model, blocks, [self.probe, *batches])
        self.hidden = [sample[0].hidden() for sample in self.calls]
        self.search = self._search_samples(seed)

    def quantize_block(self, index: int, name: str) -> list[SiteRecord]:
        """Quantizes one block and moves the hidden states behind it."""
        block = self.model.get_submodule(name)
        sites = discover_sites(block, self.calls[0][index].with_hidden(self.hidden[0]))
        stage = Stage(
            root=block,
            name=name,
            sites=tuple(s for s in sites if not all(self.plan.excludes(f"{name}.{linear}") for linear in s.linears)),
            run=lambda sample: self.calls[sample + 1][index].run(block, self.hidden[sample + 1]),
            samples=len(self.batches),
            search=self.search,
            sampler=self.sampler,
            importance=self.importance,
        )
        return self._quantize_stage(stage, lambda: self._advance(block, index, name))

    def quantize_head(self) -> list[SiteRecord]:
        """Quantizes the layer behind the blocks that gives the logits."""
        name = head_to_quantize(self.model, self.plan)
        if name is None:
            return []
        tail = Tail.of(self.model, self.blocks, self.probe)
        stage = Stage(
            root=self.model,
            name="",
            sites=(head_site(self.model, name),),
            run=lambda sample: tail.run(self.batches[sample], self.hidden[sample + 1]),
            samples=len(self.batches),
            search=self.search,
            sampler=self.sampler,
            importance=self.importance,
        )
        return self._quantize_stage(stage, lambda: None)

    def finish_embedding(self) -> dict[str, float | str]:
        """Quantizes the token embedding, unless that is done or not wanted; what was chosen."""
        if self.embedding is None:
            plan = self.plan.embedding
            self.embedding = {} if plan is None else quantize_embedding(self.model, plan)
        return self.embedding

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
        advance()
        install(stage, later)
        # What the integer products prepared would otherwise stay in memory for every stage that is done.
        for module in stage.root.modules():
            if isinstance(module, QuantizedLinear):
                module.release()
        return records

    def _groups(self, sites: Sequence[Site]) -> list[list[Site]]:
        """Sites that are quantized at once: level by level, or all, if none shall see another's rounding."""
        if not self.plan.sequential or self.plan.calibrate_on == "original":
            return [list(sites)]
        return [[site for site in sites if site.level == level] for level in sorted({site.level for site in sites})]

    def _advance(self, block: nn.Module, index: int, name: str) -> None:
        for sample, hidden in enumerate(self.hidden):
            self.hidden[sample] = self.calls[sample][index].run(block, hidden)
            if not bool(torch.isfinite(self.hidden[sample]).all()):
                original = self.plan.calibrate_on == "original"
                advice = "check the model's weights and dtype" if original else "after quantization; try more bits"
                raise NumericalError(f"{name}: its output is not finite{',' if original else ''} {advice}")

    def _count_tokens(self) -> float:
        """How many tokens the calibration set has; how many an image is made of, only the model knows."""
        ids = [batch["input_ids"].numel() for batch in self.batches if "input_ids" in batch]
        if ids:
            return float(sum(ids))
        hidden = capture_calls(self.model, self.blocks, [self.probe])[0][0].hidden()
        items = sum(len(next(iter(batch.values()))) for batch in self.batches)
        return hidden[..., 0].numel() / len(next(iter(self.probe.values()))) * items

    def _importance(self, seed: int) -> dict[str, Importance]:
        """The Fisher information of every layer's output, where the plan's objective asks for it."""
        objective = self.plan.objective
        if objective == "output" or (objective == "auto" and is_causal(self.model)):
            return {}
        first = self.model.get_submodule(self.blocks.names[0])
        names = [f"{block}.{n}" for block in self.blocks.names for n in linear_names(self.model.get_submodule(block))]
        head = head_to_quantize(self.model, self.plan)
        return output_importance(
            self.model, first, [*names, *([head] if head else [])], self.batches, self.sampler, seed
        )

    def _search_samples(self, seed: int) -> list[int]:
        """Calibration samples (batches) in random order until `search_tokens` are reached."""
        order = list(range(len(self.batches)))
        random.Random(seed).shuffle(order)
        chosen, tokens = [], 0
        for sample in order:
            chosen.append(sample)
            tokens += self.hidden[sample + 1][..., 0].numel()
            if tokens >= self.plan.search_tokens:
                break
        return chosen


def _probe_batch(batch: Batch) -> Batch:
    """A few tokens of a few samples, to find the sites with; images are taken whole."""
    few = {key: value[:PROBE_SAMPLES] for key, value in batch.items()}
    if "pixel_values" in few:
        return few
    return {key: value[:, :PROBE_TOKENS] if value.dim() == 2 else value for key, value in few.items()}
