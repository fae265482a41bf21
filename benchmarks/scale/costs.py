"""What quantizing one block costs: floating-point operations and bytes of every part of the work, as formulas.

Notation: T tokens of calibration, each sample of L; S of them looked at by searches; a block has sites of C channels
with R output features over all layers, so W = C · R weights, of which a token reaches Wₐ (all but in a mixture of
experts); D is the width of the residual stream.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from shapes import BYTES, Shape, SiteShape

from channelwise.engine.evaluator import CLIPS
from channelwise.engine.stage import HESSIAN_BYTES
from channelwise.methods.none import NoTransform
from channelwise.methods.os_plus import STRIDES, OutlierSuppressionPlus, search_minimum
from channelwise.methods.outliertune import OutlierTune
from channelwise.methods.triangular import PANEL
from channelwise.model.batches import TOKENS_PER_BATCH
from channelwise.recipe import load_recipe

Split = Literal["samples", "rows", "search", "every rank", "one rank", "exchange"]
"""How ranks share a term. search: by the batches that a search looks at, of which there are few. every rank: not at
all, each does it. one rank: the others wait or go on. exchange: bytes that a ring sends, none where there is one rank.
"""

PROBED = 32
"""Tokens that sites are found with."""


@dataclass(frozen=True)
class Work:
    """A recipe's demands. candidates: losses asked of a stream and of an inner site. directions: of groups (AdaDim: 2).

    batches: how many calibration batches a search looks at. bits: of a stored weight, scales included.
    """

    tokens: int
    length: int
    search_tokens: int
    stream_candidates: int
    inner_candidates: int
    hessian: bool
    gptq: bool
    directions: int
    bits: float

    @property
    def batches(self) -> int:
        """Of a search."""
        return max(1, round(self.search_tokens / TOKENS_PER_BATCH))


@dataclass(frozen=True)
class Term:
    """amount: FLOP, bytes or weights of one block, all ranks together; of an exchange, the bytes that are reduced.

    rate: which of `rates.py` it goes by. why: the formula in words.
    """

    name: str
    phase: str
    rate: str
    amount: float
    split: Split
    why: str

    def on(self, ranks: int, batches: int) -> float:
        """What the rank with the most to do has of it."""
        if self.split == "exchange":
            return self.amount * (ranks - 1) / ranks
        shares = {"samples": ranks, "rows": ranks, "search": min(ranks, batches)}
        return self.amount / shares.get(self.split, 1)


def work_of(recipe: str, samples: int | None, length: int | None) -> Work:
    """A recipe of the catalogue, or a file. Raises SystemExit for a method whose costs are not known here."""
    loaded = load_recipe(recipe)
    plan, calibration = loaded.to_plan(), loaded.calibration
    candidates = []
    for site in (plan.stream, plan.inner):
        method = site.method
        if isinstance(method, OutlierSuppressionPlus):
            # As many as the search asks of a loss with one minimum.
            asked = len(search_minimum(lambda index: abs(index - 40), method.steps, STRIDES))
        elif isinstance(method, OutlierTune):
            asked = 3 if method.shift == "search" else 0
        elif isinstance(method, NoTransform):
            asked = 0
        else:
            raise SystemExit(f"error: {recipe}: the costs of {type(method).__name__} are not written down")
        candidates.append(asked + (len(CLIPS) if site.search_clip else 0))
    length = calibration.length if length is None else length
    tokens = (calibration.samples if samples is None else samples) * length
    size = plan.weights.granularity.group_size
    return Work(
        tokens=tokens,
        length=length,
        search_tokens=min(tokens, plan.search_tokens),
        stream_candidates=candidates[0],
        inner_candidates=candidates[1],
        hessian=plan.weights.needs_hessian,
        gptq=plan.weights.rounding is not None,
        directions=1 if plan.weights.alternative is None else 2,
        bits=plan.weights.scheme.grid.bits + (0 if size is None else (16 + plan.weights.scheme.grid.bits) / size),
    )


def block_terms(shape: Shape, work: Work) -> list[Term]:
    """All terms of one block, in the order of the work."""
    weights = sum(site.weights for site in shape.sites)
    found = [
        Term("read weights", "read", "disk read", shape.block_bytes, "every rank", "2 bytes a number"),
        Term("find sites", "sites", "double", 2 * PROBED * weights, "every rank", f"2 · {PROBED} · W in float64"),
        *_statistics(shape, work),
    ]
    for site in shape.sites:
        found += [*_choice(shape, site, work), *_rounding(site, work)]
    return [*_merged(found), *_ending(shape, work, weights)]


def outside_terms(shape: Shape) -> list[Term]:
    """What is outside the blocks: read for the inputs and once more at the end, and written as it is."""
    size = shape.outside_bytes
    return [
        Term("read weights", "read", "disk read", 2 * size, "every rank", "embedding and head, twice"),
        Term("write", "write", "disk write", size, "one rank", "embedding and head, in floating point"),
    ]


def peak_bytes(shape: Shape, work: Work, ranks: int) -> dict[str, float]:
    """The large parts of one rank's memory. Those of GPTQ are the widest site's."""
    widest = max(site.channels for site in shape.sites)
    return {
        "block": shape.block_bytes,
        "hidden states": shape.hidden_bytes(work.tokens) / ranks,
        "Hessian, its factor below it": 4 * widest**2 if work.hessian else 0,
    }


def _statistics(shape: Shape, work: Work) -> Iterator[Term]:
    """A pass over the samples for every level, up to the inputs of its sites; several for many experts' Hessians."""
    forward = attention = 0.0
    for site in shape.sites:
        at_once = max(1, HESSIAN_BYTES // (4 * site.channels**2)) if work.hessian else site.experts
        passes = math.ceil(site.experts / min(at_once, site.experts))
        before = sum(other.active_weights for other in shape.sites if other.level < site.level)
        forward += passes * 2 * work.tokens * before
        attention += passes * _attention(shape, work.tokens, work.length) * (site.level > 0)
    why = "2 T Wₐ of the layers before each site"
    yield Term("forward to the sites", "statistics", "product", forward, "samples", why)
    yield Term("attention", "statistics", "attention", attention, "samples", "4 T L D for each pass beyond the first")
    inputs = sum(work.tokens * site.active * site.channels for site in shape.sites)
    yield Term("channel extremes", "statistics", "extremes", inputs, "samples", "T C numbers at every site")
    if work.hessian:
        products = sum(work.tokens * site.active * site.channels**2 for site in shape.sites)
        matrices = sum(2 * site.experts * site.channels**2 for site in shape.sites)
        yield Term("Hessian", "statistics", "hessian", products, "samples", "T C²: half of a symmetric 2 T C²")
        yield Term(
            "all-reduce Hessians", "statistics", "network", 2 * matrices, "exchange", "2 C² bytes, there and back"
        )


def _choice(shape: Shape, site: SiteShape, work: Work) -> Iterator[Term]:
    candidates = work.stream_candidates if site.level in (0, 2) else work.inner_candidates
    if not candidates:
        return
    products = candidates * 2 * work.search_tokens * site.active_weights
    yield Term("candidates' products", "choose", "single", products, "search", "candidates · 2 S Wₐ")
    if site.level == 0:
        attention = candidates * _attention(shape, work.search_tokens, work.length)
        yield Term("candidates' attention", "choose", "attention", attention, "search", "candidates · 4 S L D")
    rounded = candidates * site.weights
    yield Term("candidates' weights", "choose", "quantize", rounded, "every rank", "candidates · W weights rounded")


def _rounding(site: SiteShape, work: Work) -> Iterator[Term]:
    weights, channels = site.weights, site.channels
    if work.gptq:
        factor, squares = site.experts * channels**3 / 3, site.experts * PANEL * channels**2
        yield Term("factor", "round", "factor", factor, "rows", "C³/3 in float64, once for each site")
        yield Term("factor's diagonal", "round", "factor", squares, "every rank", f"{PANEL} C²: a panel's square")
        triangle = 2.0 * site.experts * channels**2
        yield Term("gather factor", "round", "network", triangle, "exchange", "C²/2 numbers in float32")
        steps = work.directions * weights
        yield Term("GPTQ columns", "round", "steps", steps, "rows", "directions · W weights, column by column")
        onward = work.directions * weights * channels
        yield Term("GPTQ onward", "round", "single", onward, "rows", "R C²: each block of columns on all later ones")
    else:
        rounded = work.directions * weights
        yield Term("round to nearest", "round", "quantize", rounded, "rows", "directions · W weights")
    if work.directions > 1:
        products = work.directions * site.layers * 2 * work.search_tokens * site.active_weights
        yield Term("compare directions", "round", "single", products, "search", "directions · layers · 2 S Wₐ")
    if work.hessian:
        yield Term("own error", "round", "error", weights * channels, "rows", "δ H δᵀ: R C², half of a symmetric H")
    codes = work.directions * weights
    yield Term("gather codes", "round", "network", codes, "exchange", "directions · W bytes")
    yield Term("pack", "round", "quantize", weights, "every rank", "W weights, each rank puts the layer in place")


def _ending(shape: Shape, work: Work, weights: int) -> Iterator[Term]:
    forward = 2 * work.tokens * sum(site.active_weights for site in shape.sites)
    hidden = shape.hidden_bytes(work.tokens)
    yield Term("forward", "advance", "product", forward, "samples", "2 T Wₐ")
    attention = _attention(shape, work.tokens, work.length)
    yield Term("attention onward", "advance", "attention", attention, "samples", "4 T L D")
    yield Term("keep hidden states", "advance", "disk write", hidden, "samples", "2 T D bytes")
    stored = weights * work.bits / 8 + BYTES * (shape.block_weights - weights)
    yield Term("write", "write", "disk write", stored, "one rank", "W weights at their width")


def _attention(shape: Shape, tokens: int, length: int) -> float:
    """QKᵀ and its product with V, of 2 L D each for a token: what lies above the diagonal is computed, too."""
    return 4.0 * tokens * length * shape.hidden


def _merged(terms: list[Term]) -> list[Term]:
    """The same terms of several sites as one, in the order of their first."""
    found: dict[str, Term] = {}
    for term in terms:
        before = found.get(term.name)
        amount = term.amount + (0.0 if before is None else before.amount)
        found[term.name] = Term(term.name, term.phase, term.rate, amount, term.split, term.why)
    return list(found.values())


def seconds(terms: list[Term], rates: Mapping[str, float], ranks: int, batches: int) -> dict[str, float]:
    """By term's name."""
    return {term.name: term.on(ranks, batches) / rates[term.rate] for term in terms}
