"""Putting channel transforms into a block: folded into producers where that is proven, else in front of the layers."""

from collections.abc import Mapping

import torch
from torch import nn

from channelwise.model.linears import bias_vector, is_linear, replace_module, set_weight, weight_matrix
from channelwise.model.norms import norm_kind
from channelwise.model.producers import Fold
from channelwise.model.sites import Site
from channelwise.numerics.transform import ChannelTransform


class TransformedLinear(nn.Module):
    """A linear layer with a channel transform in front: ((x − shift) / scale) @ weightᵀ + bias.

    weight: [out_features, in_features], bias: [out_features] or None, both already made for the transformed input.
    shift, scale: float32 (float64 for float64 weights) [in_features] or None.
    """

    shift: torch.Tensor | None
    scale: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, transform: ChannelTransform) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        wide = torch.promote_types(weight.dtype, torch.float32)
        for name, vector in (("shift", transform.shift), ("scale", transform.scale)):
            self.register_buffer(name, None if vector is None else vector.to(weight.device, wide))

    @property
    def transform(self) -> ChannelTransform:
        """The transform that is applied to the input."""
        return ChannelTransform(self.shift, self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in_features] to [..., out_features], in the weight's dtype."""
        return nn.functional.linear(self.transform.apply(x).to(self.weight.dtype), self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes and the parts, for print(model)."""
        parts = [name for name in ("shift", "scale") if getattr(self, name) is not None]
        return f"in_features={self.in_features}, out_features={self.out_features}, transform={'+'.join(parts)}"


def apply_transforms(
    block: nn.Module,
    sites: tuple[Site, ...],
    transforms: Mapping[str, ChannelTransform],
    folds: tuple[Fold, ...],
    *,
    fold: bool,
) -> dict[str, str]:
    """Applies the sites' transforms to a block in place; its output stays what it was.

    transforms: by site name; a site without one is left alone. A layer without a bias is given one where a shift has to
    go into it. Returns where each went: "producer NAME", "producer NAME, shift at the quantizer", or "quantizer".
    """
    wanted = {site.name: transforms[site.name] for site in sites if site.name in transforms}
    wanted = {name: transform for name, transform in wanted.items() if not transform.is_identity}
    remaining, places = dict(wanted), dict.fromkeys(wanted, "quantizer")
    for producer, group in _by_producer(folds).items() if fold else ():
        module = block.get_submodule(producer)
        into = _shared_transform(module, group, wanted)
        if into.is_identity:
            continue
        fold_transform(module, into)
        for part in group:
            rest = _rest(wanted[part.site], into)
            remaining[part.site] = rest
            places[part.site] = f"producer {producer}" + ("" if rest.is_identity else ", shift at the quantizer")
    for site in sites:
        if site.name in wanted:
            for name in site.linears:
                _transform_linear(block, name, wanted[site.name], remaining[site.name])
    return places


@torch.no_grad()
def fold_transform(producer: nn.Module, transform: ChannelTransform) -> None:
    """Changes a norm or linear layer in place so that its output y becomes (y − shift) / scale.

    transform: [output channels]. Raises ValueError if the module is neither, or has no bias for a shift.
    """
    kind = norm_kind(producer)
    if not is_linear(producer) and kind is None:
        raise ValueError(f"{type(producer).__name__} is neither a linear layer nor a norm with a weight")
    bias = getattr(producer, "bias", None)
    if transform.shift is not None and bias is None:
        raise ValueError(f"{type(producer).__name__} has no bias to fold a shift into")
    if bias is not None:
        bias.copy_(_moved_to(transform, bias.device).apply(bias.double()))
    if transform.scale is None:
        return
    if is_linear(producer):
        weight = weight_matrix(producer)
        set_weight(producer, weight.double() / transform.scale.to(weight.device)[:, None], None)
    else:
        weight = producer.get_parameter("weight")
        extra = 1.0 if kind == "one_plus_weight" else 0.0
        weight.copy_((weight.double() + extra) / transform.scale.to(weight.device) - extra)


def tie_transform(transform: ChannelTransform, channel_map: torch.Tensor) -> ChannelTransform:
    """The transform made foldable: channels from one producer channel get their largest scale and their mean shift.

    channel_map: int64 [channels], as in Fold.
    """
    count = int(channel_map.max()) + 1

    def tied(vector: torch.Tensor | None, reduce: str) -> torch.Tensor | None:
        if vector is None:
            return None
        places = channel_map.to(vector.device)
        return vector.new_zeros(count).scatter_reduce(0, places, vector, reduce, include_self=False)[places]

    return ChannelTransform(tied(transform.shift, "mean"), tied(transform.scale, "amax"))


def _by_producer(folds: tuple[Fold, ...]) -> dict[str, list[Fold]]:
    groups: dict[str, list[Fold]] = {}
    for fold in folds:
        if fold.scale:
            groups.setdefault(fold.producer, []).append(fold)
    return groups


def _shared_transform(module: nn.Module, group: list[Fold], wanted: Mapping[str, ChannelTransform]) -> ChannelTransform:
    """What the producer's own channels take on: both parts, the scale alone, or nothing where sites disagree."""
    bias = getattr(module, "bias", None)
    channels = weight_matrix(module).shape[0] if is_linear(module) else module.get_parameter("weight").shape[0]
    of_sites = [wanted.get(fold.site, ChannelTransform()) for fold in group]
    maps = [fold.channel_map for fold in group]
    scale = _scattered([transform.scale for transform in of_sites], maps, channels, 1.0)
    if scale is None:
        return ChannelTransform()
    shift = None
    if bias is not None and all(fold.shift for fold in group):
        shift = _scattered([transform.shift for transform in of_sites], maps, channels, 0.0)
    return ChannelTransform(
        shift if shift is not None and bool((shift != 0.0).any()) else None,
        scale if bool((scale != 1.0).any()) else None,
    )


def _scattered(
    vectors: list[torch.Tensor | None], maps: list[torch.Tensor], channels: int, neutral: float
) -> torch.Tensor | None:
    """The sites' vectors in the producer's channels, float64 [channels]; None if two want different things of one."""
    result = torch.full((channels,), torch.nan, dtype=torch.float64)
    full = [torch.full((len(places),), neutral) if v is None else v for v, places in zip(vectors, maps, strict=True)]
    for vector, places in zip(full, maps, strict=True):
        result[places] = vector.detach().double().cpu()
    if any(
        not torch.equal(result[places], vector.detach().double().cpu())
        for vector, places in zip(full, maps, strict=True)
    ):
        return None
    return torch.where(torch.isnan(result), neutral, result)


def _rest(wanted: ChannelTransform, folded: ChannelTransform) -> ChannelTransform:
    """What is left to do on (x − folded.shift) / folded.scale, where what was folded is both parts or one of them."""
    shift = None if folded.shift is not None else wanted.shift
    if shift is not None and folded.scale is not None and wanted.scale is not None:
        shift = shift / wanted.scale
    return ChannelTransform(shift, None if folded.scale is not None else wanted.scale)


@torch.no_grad()
def _transform_linear(block: nn.Module, name: str, whole: ChannelTransform, rest: ChannelTransform) -> None:
    """Changes one layer's weight and bias for the whole transform, and puts what is left of it in front."""
    linear = block.get_submodule(name)
    weight, bias = weight_matrix(linear), bias_vector(linear)
    whole = _moved_to(whole, weight.device)
    new_weight = whole.fold_weight(weight.double())
    new_bias = whole.fold_bias(weight.double(), None if bias is None else bias.double())
    if rest.is_identity:
        set_weight(linear, new_weight, new_bias)
        return
    new_bias = None if new_bias is None else new_bias.to(weight.dtype)
    replace_module(block, name, TransformedLinear(new_weight.to(weight.dtype), new_bias, rest))


def _moved_to(transform: ChannelTransform, device: torch.device) -> ChannelTransform:
    """The transform in float64 on a device."""
    shift, scale = (None if v is None else v.to(device, torch.float64) for v in (transform.shift, transform.scale))
    return ChannelTransform(shift, scale)
