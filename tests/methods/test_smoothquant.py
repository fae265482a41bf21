"""SmoothQuant (methods.md §0)."""

import torch

from channelwise.methods.smoothquant import SmoothQuant
from channelwise.numerics.grids import IntegerGrid
from tests.methods.sites import TensorSite, outlier_site


def test_scale_is_the_ratio_of_the_powers() -> None:
    x = torch.tensor([[[4.0, -9.0]]])
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([[-16.0, 4.0]])]
    scale = SmoothQuant(alpha=0.5).choose(TensorSite(x, weights, IntegerGrid(8))).transform.scale
    torch.testing.assert_close(scale, torch.tensor([2.0 / 4.0, 3.0 / 2.0]))


def test_alpha_one_makes_all_channels_equal() -> None:
    site = outlier_site(0)
    x = SmoothQuant(alpha=1.0).choose(site).transform.apply(site.x)
    torch.testing.assert_close(x.abs().amax(dim=(0, 1)), torch.ones(x.shape[-1]))


def test_alpha_zero_makes_all_weight_columns_equal() -> None:
    site = outlier_site(0)
    transform = SmoothQuant(alpha=0.0).choose(site).transform
    columns = torch.stack([transform.fold_weight(w).abs().amax(dim=0) for w in site.weights]).amax(dim=0)
    torch.testing.assert_close(columns, torch.ones_like(columns))


def test_dead_channels_keep_their_unit() -> None:
    site = TensorSite(torch.tensor([[[0.0, 2.0, 3.0]]]), [torch.tensor([[1.0, 0.0, 3.0]])], IntegerGrid(8))
    scale = SmoothQuant().choose(site).transform.scale
    torch.testing.assert_close(scale, torch.tensor([1.0, 1.0, 1.0]))
