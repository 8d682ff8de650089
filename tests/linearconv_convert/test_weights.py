"""Weights of LinearConv layers: fits of any variant, initial distributions, and copies between whole networks."""

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import fitting, initialise
from linearconv_convert.weights import copy_weights, fit
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse
from tests.helpers.layers import relative_error


class BlockDiagonal(LinearConv):
    """A variant as a user writes it, unknown to conversion."""

    def _create_factors(self, **factory):
        size = self.secondary_channels // 4, self.primary_channels // 4
        self.blocks = nn.Parameter(torch.empty(4, *size, **factory))

    def factors(self):
        return (torch.block_diag(*self.blocks),)


def test_an_own_variant_is_fitted_better_than_by_the_blocks_of_the_best_coefficients():
    torch.manual_seed(0)
    fitted, conv = BlockDiagonal(16, 32, 3), nn.Conv2d(16, 32, 3)
    conv.weight.requires_grad_(False)
    error, _ = fit(fitted, conv)
    filters = conv.weight.double().flatten(1)
    assert error == pytest.approx(((fitted.weight.flatten(1) - filters).norm() / filters.norm()).item())
    best = fitting.full_rank(fitting.root_of(filters), 16)
    blocks = torch.block_diag(*[best[4 * index :, 4 * index :][:4, :4] for index in range(4)])
    stacked = torch.cat((torch.eye(16, dtype=torch.float64), blocks))
    remaining = filters - stacked @ torch.linalg.lstsq(stacked, filters).solution
    assert error < remaining.norm() / filters.norm()
    assert fitted.blocks.dtype == torch.float32 and fitted.blocks.requires_grad and fitted.blocks.grad is None
    with torch.no_grad():  # filters that the variant can have are found again
        fitted.blocks.normal_()
        conv.weight.copy_(fitted.weight)
    assert fit(BlockDiagonal(16, 32, 3), conv)[0] < 1e-3


LAYERS = {
    "full rank": lambda: LinearConv(64, 256, 3),
    "rank 10": lambda: LinearConvLowRank(64, 256, 3, rank=10),
    "sparse": lambda: LinearConvSparse(64, 256, 3),
}


def norms(layer):
    filters = layer.weight.detach().flatten(1).norm(dim=1)
    return filters[: layer.primary_channels].mean(), filters[layer.primary_channels :].mean()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_balanced_secondary_filters_are_as_large_as_primary_ones(make):
    torch.manual_seed(0)
    primary, secondary = norms(initialise(make(), "balanced"))
    assert 0.85 < secondary / primary < 1.15
    primary, secondary = norms(initialise(make(), "published"))
    assert secondary / primary < 0.8


def test_spectral_filters_are_the_best_of_their_rank():
    layer = LinearConv(8, 16, 3)
    torch.manual_seed(3)
    layer.reset_parameters()
    drawn = nn.Conv2d(8, 16, 3).weight.detach().flatten(1)
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    best = left[:, :8] * values[:8] @ right[:8]
    torch.manual_seed(3)
    initialise(layer, "spectral")
    assert relative_error(layer.weight.flatten(1), best) < 0.01


def test_a_layer_without_secondary_filters_starts_too():
    for start in ("balanced", "spectral"):
        assert initialise(LinearConv(4, 4, 3, alpha=1.0), start).weight.isfinite().all()
    with pytest.raises(ValueError, match="start must be one of published, balanced, spectral"):
        initialise(nn.Sequential(), "orthogonal")


def test_a_network_gets_all_weights_of_the_dense_one():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 6, 3, bias=False)))
    dense(torch.randn(4, 3, 9, 9))
    layers = LinearConv(3, 8, 3, alpha=1), nn.BatchNorm2d(8), nn.Sequential(LinearConv(8, 6, 3, bias=False))
    model = nn.Sequential(*layers)
    copy_weights(dense, model)
    assert torch.equal(model[0].conv_weights, dense[0].weight) and torch.equal(model[0].bias, dense[0].bias)
    assert torch.equal(model[1].running_mean, dense[1].running_mean) and model[1].num_batches_tracked == 1
    filters = dense[2][0].weight.detach().flatten(1)
    error = (model[2][0].weight.flatten(1) - filters).norm()
    assert error <= 1.01 * torch.linalg.svdvals(filters)[3:].norm()
