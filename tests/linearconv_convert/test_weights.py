"""Initial weights: what each start says of the filters, and weights carried over between whole networks."""

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import initialise
from linearconv_convert.weights import copy_weights
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse
from tests.helpers.layers import relative_error
from tests.helpers.networks import tiny

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
    initialise(layer, "spectral")
    torch.manual_seed(3)
    layer.reset_parameters()
    drawn = nn.Conv2d(8, 16, 3).weight.detach().flatten(1)
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    best = left[:, :8] * values[:8] @ right[:8]
    filters = LinearConv(8, 16, 3)
    torch.manual_seed(3)
    initialise(filters, "spectral")
    assert relative_error(filters.weight.flatten(1), best) < 0.01


def test_a_layer_without_secondary_filters_starts_too():
    for start in ("balanced", "spectral"):
        layer = initialise(LinearConv(4, 4, 3, alpha=1.0), start)
        assert layer.weight.isfinite().all()


def test_only_known_starts_are_taken():
    with pytest.raises(ValueError, match="start must be one of published, balanced, spectral"):
        initialise(nn.Sequential(), "orthogonal")


def test_a_network_takes_over_all_that_the_dense_one_has_learnt():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 6, 3, bias=False)))
    dense(torch.randn(4, 3, 9, 9))
    model = nn.Sequential(
        LinearConv(3, 8, 3, alpha=1), nn.BatchNorm2d(8), nn.Sequential(LinearConv(8, 6, 3, bias=False))
    )
    copy_weights(dense, model)
    assert torch.equal(model[0].conv_weights, dense[0].weight) and torch.equal(model[0].bias, dense[0].bias)
    assert torch.equal(model[1].running_mean, dense[1].running_mean) and model[1].num_batches_tracked == 1
    filters = dense[2][0].weight.detach().flatten(1)
    error = (model[2][0].weight.flatten(1) - filters).norm()
    assert error <= 1.01 * torch.linalg.svdvals(filters)[3:].norm()


def test_a_sparse_layer_that_takes_over_weights_is_still_to_be_pruned():
    dense, layer = nn.Sequential(nn.Conv2d(4, 8, 3)), LinearConvSparse(4, 8, 3, sparsity=0.5)
    copy_weights(dense, nn.Sequential(layer))
    assert layer.pruned_fraction == 0 and layer.steps == 0


def test_networks_that_do_not_correspond_are_refused():
    with pytest.raises(AttributeError):
        copy_weights(tiny(), nn.Sequential(LinearConv(3, 8, 3)))
