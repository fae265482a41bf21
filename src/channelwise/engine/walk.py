"""The walk: block by block, level by level, statistics, transforms, quantized layers; then on to the next block."""

import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from channelwise.engine.evaluator import SiteEvaluator, loss_dependents, with_searched_clip
from channelwise.engine.hooks import run_until_seen
from channelwise.engine.plan import Plan, SiteRecord, WalkRecord
from channelwise.engine.quantize import quantize_linear
from channelwise.engine.statistics import StatisticsBuilder
from channelwise.errors import InputError, NumericalError
from channelwise.methods.site import ChannelStatistics, Choice
from channelwise.model.attention import use_quantized_attention
from channelwise.model.blocks import BlockList, find_blocks
from channelwise.model.calls import BlockCall, capture_calls
from channelwise.model.linears import is_linear, replace_module, weight_matrix
from channelwise.model.sites import Site, discover_sites
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme

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
    if plan.attention_bits is not None:
        use_quantized_attention(model, plan.attention_bits)
    report = progress or (lambda label, done, total: None)
    report("reading the calibration data", 0, len(blocks.names))
    walker = _Walker(plan, capture_calls(model, blocks, [_probe_batch(batches[0]), *batches]), seed)
    records: list[SiteRecord] = []
    for index, block in enumerate(blocks.modules(model)):
        report(f"block {index + 1} of {len(blocks.names)}", index, len(blocks.names))
        records += walker.quantize_block(block, index, blocks.names[index])
    report("done", len(blocks.names), len(blocks.names))
    return WalkRecord(tuple(records), time.perf_counter() - started)


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

    def __init__(self, plan: Plan, calls: list[list[BlockCall]], seed: int) -> None:
        self.plan = plan
        self.calls = calls
        self.hidden = [sample[0].hidden() for sample in calls]
        self.search = self._search_samples(seed)

    def quantize_block(self, block: nn.Module, index: int, name: str) -> list[SiteRecord]:
        """Quantizes one block and moves the hidden states behind it."""
        sites = discover_sites(block, self.calls[0][index].with_hidden(self.hidden[0]))
        sites = tuple(s for s in sites if not all(self.plan.excludes(f"{name}.{linear}") for linear in s.linears))
        records: list[SiteRecord] = []
        if self.plan.sequential:
            for level in sorted({site.level for site in sites}):
                chosen = [site for site in sites if site.level == level]
                records += self._quantize_sites(block, index, name, chosen)
        else:
            records += self._quantize_sites(block, index, name, list(sites))
        self._advance(block, index, name)
        return records

    def _quantize_sites(self, block: nn.Module, index: int, name: str, sites: list[Site]) -> list[SiteRecord]:
        statistics = self._collect(block, index, sites)
        choices = {}
        for site in sites:
            found = statistics.get(site.name)
            if found is not None:
                _check_finite(found, f"{name}.{site.name}")
                choices[site.name] = self._choose(block, index, site, found)
        # All choices are made on floating-point layers before any of this level is replaced.
        for site in sites:
            self._replace(block, name, site, choices.get(site.name), statistics.get(site.name))
        return [_record(name, s, statistics.get(s.name), choices.get(s.name)) for s in sites]

    def _collect(self, block: nn.Module, index: int, sites: list[Site]) -> dict[str, ChannelStatistics]:
        builders = {site.name: StatisticsBuilder(site.channels) for site in sites}
        for sample in range(1, len(self.calls)):
            run = self._run(block, index, sample)
            run_until_seen(run, block, list(builders), lambda site, x: builders[site].update(x))
        return {site: builder.finish() for site, builder in builders.items() if builder.tokens}

    def _choose(self, block: nn.Module, index: int, site: Site, statistics: ChannelStatistics) -> Choice:
        site_plan = self.plan.site_plan(site.kind)
        evaluator = SiteEvaluator(
            block=block,
            site=site,
            statistics=statistics,
            runs=[self._run(block, index, sample) for sample in self.search],
            weight_scheme=self.plan.weights,
            input_scheme=site_plan.inputs,
            dependents=loss_dependents(site),
        )
        choice = site_plan.method.choose(evaluator)
        return with_searched_clip(choice, evaluator) if site_plan.search_clip else choice

    def _replace(
        self, block: nn.Module, name: str, site: Site, choice: Choice | None, statistics: ChannelStatistics | None
    ) -> None:
        inputs = self.plan.site_plan(site.kind).inputs
        if statistics is None and inputs is not None:
            # An expert that no token reached: nothing is known of its range, so it is found at run time.
            inputs = InputScheme(inputs.grid, "token")
        transform, clip = (choice.transform, choice.clip) if choice else (ChannelTransform(), 1.0)
        for linear in site.linears:
            if self.plan.excludes(f"{name}.{linear}"):
                continue
            module = block.get_submodule(linear)
            quantized = quantize_linear(module, transform, statistics, self.plan.weights, inputs, clip)
            _check_layer(quantized.weight_scale, quantized.scheme, f"{name}.{linear}")
            replace_module(block, linear, quantized)

    def _advance(self, block: nn.Module, index: int, name: str) -> None:
        for sample in range(len(self.calls)):
            self.hidden[sample] = self._run(block, index, sample)()
            if not bool(torch.isfinite(self.hidden[sample]).all()):
                raise NumericalError(f"{name}: its output is not finite after quantization; try more bits")
        # What the integer products prepared would otherwise stay in memory for every block that is done.
        for module in block.modules():
            if isinstance(module, QuantizedLinear):
                module.release()

    def _run(self, block: nn.Module, index: int, sample: int) -> Callable[[], torch.Tensor]:
        return lambda: self.calls[sample][index].run(block, self.hidden[sample])

    def _search_samples(self, seed: int) -> list[int]:
        """Calibration samples (batches) in random order until `search_tokens` are reached; the probe is left out."""
        order = list(range(1, len(self.calls)))
        random.Random(seed).shuffle(order)
        chosen, tokens = [], 0
        for sample in order:
            chosen.append(sample)
            tokens += self.hidden[sample][..., 0].numel()
            if tokens >= self.plan.search_tokens:
                break
        return chosen


def _probe_batch(batch: Batch) -> Batch:
    """A few tokens of a few samples, to find the sites with; images are taken whole."""
    few = {key: value[:PROBE_SAMPLES] for key, value in batch.items()}
    if "pixel_values" in few:
        return few
    return {key: value[:, :PROBE_TOKENS] if value.dim() == 2 else value for key, value in few.items()}


def _check_finite(statistics: ChannelStatistics, name: str) -> None:
    if not bool(torch.isfinite(statistics.minimum + statistics.maximum).all()):
        raise NumericalError(f"{name}: its input has values that are not finite; check the model's weights and dtype")


def _check_layer(scale: torch.Tensor, scheme: LinearScheme, name: str) -> None:
    if not bool(torch.isfinite(scale).all()):
        raise NumericalError(f"{name}: its weight has values that are not finite; check the model's weights")


def _record(name: str, site: Site, statistics: ChannelStatistics | None, choice: Choice | None) -> SiteRecord:
    linears = tuple(f"{name}.{linear}" for linear in site.linears)
    if statistics is None:
        return SiteRecord(
            linears[0], linears, site.kind, site.channels, 0, 0.0, 0.0, 0.0, {"note": "no token reached it"}
        )
    largest = statistics.absolute_maximum
    half = (statistics.maximum - statistics.minimum) / 2
    asymmetry = statistics.center.abs() / half.clamp(min=torch.finfo(torch.float32).tiny)
    return SiteRecord(
        name=linears[0],
        linears=linears,
        kind=site.kind,
        channels=site.channels,
        tokens=statistics.tokens,
        largest=float(largest.amax()),
        median=float(largest.median()),
        asymmetry=float(asymmetry[half > 0].amax()) if bool((half > 0).any()) else 0.0,
        notes=dict(choice.notes) if choice else {},
    )
