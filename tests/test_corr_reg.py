"""The regularisers equal numpy's correlation and stay finite where numpy's does not."""

import numpy as np
import pytest
import torch
import torch.nn as nn

from corr_reg import corr_loss, filter_correlation, l1_loss, mean_correlation
from linearconv import LinearConv
from linearconv_sparse import LinearConvSparse
from tests.helpers.layers import VARIANTS


@pytest.mark.parametrize(
    "dtype, limit", ((torch.float64, 1e-13), (torch.float32, 1e-5), (torch.complex128, 1e-13), (torch.complex64, 1e-5))
)
@pytest.mark.parametrize("shape", ((8, 4, 3, 3), (1, 4, 3, 3), (32, 3, 3, 3)))
def test_correlation_equals_numpy(shape, dtype, limit):
    filters = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 0.3
    expected = np.atleast_2d(np.corrcoef(filters.flatten(1).numpy(), dtype=np.result_type(filters.numpy(), np.float64)))
    assert np.abs(filter_correlation(filters).numpy() - expected).max() < limit


def test_the_loss_is_the_sum_over_all_layers_of_any_module():
    torch.manual_seed(0)
    layers = [make(6, 10, 3) for make in VARIANTS.values()]
    model = nn.ModuleDict({"a": nn.Sequential(*layers[:2]), "b": nn.ModuleList(layers[2:]), "c": nn.Conv2d(6, 10, 3)})
    expected = 0.0
    for layer in layers:
        correlation = np.corrcoef(layer.conv_weights.detach().double().flatten(1).numpy())
        expected += np.abs(correlation - np.eye(len(correlation))).sum()
    model["shared"] = layers[0]  # a shared layer counts once
    assert corr_loss(model).item() == pytest.approx(expected, rel=1e-5)
    assert corr_loss(nn.Conv2d(3, 4, 3)).item() == 0


def test_the_mean_is_over_the_pairs_of_all_layers():
    torch.manual_seed(0)
    layers = LinearConv(6, 10, 3), LinearConv(4, 6, 3), LinearConv(4, 2, 3)  # the last has one primary filter
    above = [
        np.abs(np.corrcoef(layer.conv_weights.detach().flatten(1).numpy())[np.triu_indices(n, 1)])
        for layer, n in zip(layers, (5, 3), strict=False)
    ]
    assert mean_correlation(nn.Sequential(*layers)) == pytest.approx(np.concatenate(above).mean(), rel=1e-5)
    assert mean_correlation(layers[2]) is None and mean_correlation(nn.Conv2d(3, 4, 3)) is None


@pytest.mark.parametrize("dtype", (torch.float64, torch.complex128))
def test_gradient_passes_gradcheck(dtype):
    filters = torch.randn(5, 2, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(filter_correlation, (filters.requires_grad_(),))
    assert torch.autograd.gradgradcheck(filter_correlation, (filters[:3].detach().requires_grad_(),))


def expected_gradient(filters):
    """The gradient of sum |C - I| by hand: ((2 S - diag(r)) U) / norm, S = sign(C - I), r_i = 2 sum_j S_ij C_ij."""
    rows = filters.reshape(len(filters), -1)
    centred = rows - rows.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / norm  # U
    correlation = unit @ unit.T
    signs = np.sign(correlation)
    np.fill_diagonal(signs, 0)
    toward = 2 * (signs * correlation).sum(1, keepdims=True)
    return ((2 * signs @ unit - toward * unit) / norm).reshape(filters.shape)


@pytest.mark.parametrize("shape", ((5, 2, 3, 3), (130, 4, 3, 3), (1, 2, 3, 3)))
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_gradient_of_the_loss_is_that_of_the_formula(shape, memory_format):
    torch.manual_seed(0)
    layer = LinearConv(shape[1], 2 * shape[0], shape[2:], dtype=torch.float64).to(memory_format=memory_format)
    with torch.no_grad():
        layer.conv_weights.add_(0.3)
        layer.conv_weights[shape[0] // 2 :] += layer.conv_weights[0].clone()
        layer.conv_weights[-1] = 2 * layer.conv_weights[0]  # correlation 1, or more by rounding
    (3 * corr_loss(layer)).backward()
    expected = 3 * expected_gradient(layer.conv_weights.detach().numpy())
    np.testing.assert_allclose(layer.conv_weights.grad.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", (torch.float32, torch.complex64))
def test_descending_on_the_loss_decorrelates_the_filters(dtype):
    torch.manual_seed(0)
    layer = LinearConv(8, 16, 3, dtype=dtype)
    with torch.no_grad():
        layer.conv_weights.add_(2 * torch.randn(8, 3, 3, dtype=dtype))  # a shared component: all filters correlate
    losses, optimizer = [], torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = corr_loss(layer)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize("value", (0.0, -3.7, 1e-20))
@pytest.mark.parametrize("constant", ((0, 2), (0, 1, 2, 3)))
def test_constant_filters_give_finite_values_and_gradients(value, constant):
    layer = LinearConv(5, 8, 3)
    with torch.no_grad():
        layer.conv_weights[list(constant)] = value
    loss = corr_loss(layer)
    (gradient,) = torch.autograd.grad(loss, layer.conv_weights, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), layer.conv_weights)
    assert loss.isfinite() and gradient.isfinite().all() and second.isfinite().all()
    assert gradient[list(constant)].abs().max() == 0  # what has no direction is not pushed anywhere
    varying = [i for i in range(4) if i not in constant]
    if len(varying) > 1:  # and the others are treated as if it were not there
        rest = np.corrcoef(layer.conv_weights.detach()[varying].double().flatten(1).numpy())
        assert loss.item() == pytest.approx(np.abs(rest - np.eye(len(rest))).sum(), rel=1e-4)
        assert gradient[varying].abs().max() > 0
    else:
        assert loss.item() == 0


@pytest.mark.parametrize("dtype, limit", ((torch.float32, 1), (torch.complex64, 1 + 1e-7)))
def test_nearly_parallel_filters_stay_within_the_unit_interval(dtype, limit):
    factors = torch.tensor([1, 2, 3, -1, -2, 1e-4], dtype=dtype)
    filters = torch.randn(1, 64, 3, 3, dtype=dtype).repeat(6, 1, 1, 1) * factors.view(6, 1, 1, 1)
    assert filter_correlation(filters).abs().max() <= limit


def test_l1_term_is_of_the_sparse_layers_alone():
    torch.manual_seed(0)
    sparse, full = LinearConvSparse(3, 8, 3), LinearConv(3, 8, 3)
    loss = l1_loss(nn.Sequential(full, sparse))
    assert loss.item() == pytest.approx(np.abs(sparse.linear_weights.detach().numpy()).sum(), rel=1e-6)
    loss.backward()
    assert torch.equal(sparse.linear_weights.grad, sparse.linear_weights.sign())
    assert full.linear_weights.grad is None
    assert l1_loss(full).item() == 0
