"""Fits of LinearConv to given filters: as good as theory allows, with coefficients that bfloat16 can take."""

import numpy as np
import pytest
import torch

from linearconv import LinearConv
from linearconv_convert import fitting
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse


def filters_of(kind, out_channels=64, size=144, seed=0):
    """(F, K) with a flat spectrum, one that falls off, one that falls off within nearly equal filters, ..."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(out_channels, size, generator=generator)
    if kind == "random":
        return random
    left, values, right = torch.linalg.svd(random, full_matrices=False)
    order = torch.arange(len(values))
    if kind == "decaying":
        return left * (0.85**order) @ right
    if kind == "correlated":  # all filters alike but for a few per cent
        return random[:1] + 0.05 * random
    if kind == "twins":  # the first half is one filter, over and over: nearly useless as primary filters
        twins = random.clone()
        twins[: out_channels // 2] = random[0] + 0.01 * random[: out_channels // 2]
        return twins
    raise AssertionError(kind)


KINDS = ("random", "decaying", "correlated", "twins")


def optimum(filters, rank):
    """Relative error of the best matrix of that rank (Eckart-Young)."""
    values = torch.linalg.svdvals(filters.double())
    return (values[rank:].norm() / values.norm()).item()


def error_in(dtype, filters, coefficients):
    """Relative error of the filters that parameters and primary filters rounded to a data type make."""
    coefficients = coefficients.to(dtype).double()
    primary = fitting.primary_of(coefficients, filters).to(dtype).double()
    made = torch.cat((primary, coefficients @ primary))
    return (torch.linalg.vector_norm(made - filters.double()) / filters.double().norm()).item()


def error_in_float32(filters, coefficients):
    return error_in(torch.float32, filters, coefficients)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_close_to_the_optimum_in_float32_and_in_bfloat16(kind, alpha):
    filters = filters_of(kind)
    primary = int(alpha * len(filters))
    coefficients = fitting.full_rank(fitting.root_of(filters), primary)
    assert coefficients.shape == (len(filters) - primary, primary)
    is_hard = kind == "twins" or optimum(filters, primary) < 0.01
    margin = 0.025 if is_hard else 0.0  # there, the optimum needs huge coefficients
    assert error_in_float32(filters, coefficients) <= 1.01 * optimum(filters, primary) + margin
    assert error_in(torch.bfloat16, filters, coefficients) <= 1.1 * optimum(filters, primary) + 0.035


def test_coefficients_stay_small_where_the_optimum_can_only_be_approached():
    filters = filters_of("random")
    filters[:32] = 0  # no multiple of nothing gives the second half
    coefficients = fitting.full_rank(fitting.root_of(filters), 32)
    assert coefficients.abs().max() < 1e4
    assert error_in_float32(filters, coefficients) < 1e-3


@pytest.mark.parametrize("size", [144, 20])  # 20: fewer elements than primary filters
def test_filters_of_low_rank_are_met_to_the_rounding_error(size):
    filters = filters_of("random", size=20).double() @ torch.randn(20, size, dtype=torch.float64)
    coefficients = fitting.full_rank(fitting.root_of(filters), 32)
    assert fitting.error(coefficients, filters) < 0.01 * filters.norm()


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_is_never_worse_than_regressing_on_the_first_filters(kind, rank):
    filters = filters_of(kind)
    root = fitting.root_of(filters)
    column, row = fitting.low_rank(root, 32, rank, fitting.full_rank(root, 32))
    assert (column.shape, row.shape) == ((32, rank), (rank, 32))
    assert max(column.abs().max(), row.abs().max()) < 1e4
    first, others = filters[:32].double(), filters[32:].double()
    predicted = torch.linalg.lstsq(first.T, others.T).solution.T @ first
    explained = torch.linalg.svd(predicted, full_matrices=False).U[:, :rank]  # reduced-rank regression
    baseline = torch.linalg.vector_norm(others - explained @ explained.T @ predicted) / filters.double().norm()
    assert error_in_float32(filters, column.float().double() @ row.float().double()) <= 1.0001 * baseline


def test_low_rank_with_rank_to_spare_is_full_rank():
    filters = filters_of("decaying", out_channels=24)
    root = fitting.root_of(filters)
    full = fitting.full_rank(root, 12)
    column, row = fitting.low_rank(root, 12, 20, full)
    assert (column.shape, row.shape) == ((12, 20), (20, 12))
    torch.testing.assert_close(column @ row, full)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_prunes_exactly_and_is_never_worse_than_pruning_the_regression_on_the_first(kind, share):
    filters = filters_of(kind)
    root = fitting.root_of(filters)
    pruned = round(share * 32 * 32)
    coefficients, mask = fitting.sparse(root, 32, pruned, fitting.full_rank(root, 32))
    assert (mask == 0).sum() == pruned and coefficients[mask == 0].eq(0).all()
    first, others = filters[:32].double(), filters[32:].double()
    solution = torch.linalg.lstsq(first.T, others.T).solution.T.contiguous()
    solution.view(-1)[solution.abs().flatten().topk(pruned, largest=False).indices] = 0
    baseline = torch.linalg.vector_norm(others - solution @ first) / filters.double().norm()
    assert error_in_float32(filters, coefficients) <= 1.0001 * baseline


def test_masked_regression_solves_each_row_on_its_own_columns():
    filters = filters_of("random", out_channels=12, size=30).double()
    mask = (torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    found = fitting.masked_regression(filters, mask, filters[:6])
    for row, kept, target in zip(found, mask.bool(), filters[6:], strict=True):
        expected = torch.linalg.lstsq(filters[:6][kept].T, target[:, None]).solution[:, 0]
        torch.testing.assert_close(row[kept], expected, rtol=1e-5, atol=1e-6)
        assert row[~kept].eq(0).all()


def test_a_known_linearconv_is_found_again():
    torch.manual_seed(0)
    for layer in (LinearConv(8, 32, 3), LinearConvLowRank(8, 32, 3, rank=2), LinearConvSparse(8, 32, 3, sparsity=0.5)):
        filters = layer.double().weight.detach()
        coefficients = fitting.full_rank(fitting.root_of(filters), 16)
        assert fitting.error(coefficients, fitting.root_of(filters)) < 1e-6 * filters.norm()
        primary = fitting.primary_of(coefficients, filters)
        assert primary.shape == layer.conv_weights.shape
        torch.testing.assert_close(primary, layer.conv_weights.detach(), rtol=0, atol=1e-5)


def test_moments_of_outputs_give_the_root_of_the_filters_for_white_inputs():
    filters = filters_of("decaying", out_channels=16).double()
    root = fitting.root_of_moments(filters @ filters.T)
    torch.testing.assert_close(root @ root.T, filters @ filters.T)
    a, b = fitting.full_rank(root, 8), fitting.full_rank(fitting.root_of(filters), 8)
    torch.testing.assert_close(fitting.error(a, filters), fitting.error(b, filters), rtol=1e-3, atol=0)


def test_filters_of_zeros_are_met_by_zeros():
    root = fitting.root_of(torch.zeros(8, 4, 3, 3))
    coefficients = fitting.full_rank(root, 4)
    assert coefficients.isfinite().all() and fitting.error(coefficients, root) == 0
    column, row = fitting.low_rank(root, 4, 2, coefficients)
    assert column.isfinite().all() and row.isfinite().all()
    assert fitting.sparse(root, 4, 8, coefficients)[0].isfinite().all()


def test_in_a_metric_the_fit_has_the_least_weighted_error():
    root = filters_of("decaying", 24, 60).double()
    factor = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    metric = factor @ factor.T + torch.eye(24)
    coefficients = fitting.full_rank(root, 10, metric)
    remaining = fitting.residual(coefficients, root, metric)
    error = np.einsum("fr,fg,gr->", remaining, metric, remaining)
    least = np.square(np.linalg.svd(np.linalg.cholesky(metric).T @ root.numpy(), compute_uv=False)[10:]).sum()
    assert error == pytest.approx(least, rel=0.005) and error > least
    values, basis, dual = fitting.components(root, metric)
    assert values[10:].square().sum().item() == pytest.approx(least)
    remaining = root - basis[:, :10] @ (dual[:10] @ root)
    assert np.einsum("fr,fg,gr->", remaining, metric, remaining) == pytest.approx(least)
