"""The regularisers of LinearConv: correlation between primary filters, and the L1 term of the sparse variant.

    corr_loss = sum over layers of sum_ij | C - I |_ij
    l1_loss   = sum over sparse layers of sum | linear_weights |

`C` is the Pearson correlation matrix of a layer's flattened primary filters, | | the magnitude, of complex ones too.
Pushing it towards the identity keeps the primary filters linearly independent, so that the network's redundancy stands
in `A`, where it was put on purpose. The paper adds 0.01 times each to the loss of every 10th batch.
"""

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd import forward_ad

from linearconv import LinearConv
from linearconv_features import in_plain_eager_mode
from linearconv_sparse import LinearConvSparse

BLOCK = 64  # rows of the correlation matrix computed at a time, so that most of its lower half is not


def filter_correlation(filters: Tensor) -> Tensor:
    """Return the Pearson correlation matrix of filters: `numpy.corrcoef` of their flattened rows, |C| clamped to 1.

    Args:
        filters: (P, ...), at least two-dimensional, real or complex; a filter is flattened to a vector.

    Returns:
        (P, P), Hermitian for complex filters. A constant filter (a one-element one too) has no correlation: its row
        and column are 0 and pass no gradient, where numpy gives nan; its diagonal element is 1 as any other's.
    """
    rows = filters.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    with torch.no_grad():  # what rounding leaves of a constant filter is at most its norm times the machine's epsilon
        limit = 4 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        varies = torch.linalg.vector_norm(centred, dim=1, keepdim=True) > limit
    # Constant rows are replaced before the norm is taken: its gradient at zero must not meet the others' as 0 * inf.
    centred = torch.where(varies, centred, torch.zeros_like(centred))
    norm = torch.linalg.vector_norm(torch.where(varies, centred, torch.ones_like(centred)), dim=1, keepdim=True)
    unit = centred / norm
    correlation = unit @ unit.T.conj()
    is_complex = correlation.is_complex()
    correlation = correlation / correlation.abs().clamp(min=1) if is_complex else correlation.clamp(-1, 1)
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return torch.where(identity.bool(), identity, correlation)


def corr_loss(module: nn.Module) -> Tensor:
    """Return the sum of |C - I| over the primary filters of every LinearConv layer in `module`, itself included.

    Args:
        module: a layer or a network of any depth; a shared layer counts once.

    Returns:
        A scalar, differentiable; a float32 zero where there is no such layer. It is not divided by anything.
        Layers with more primary filters than filter elements (a 3x3 stem, depthwise ones) cannot reach 0.
    """
    return _sum_over(module, LinearConv, lambda layer: _off_diagonal(layer.conv_weights))


def l1_loss(module: nn.Module) -> Tensor:
    """Return the sum of |linear_weights| over every LinearConvSparse layer in `module`, a scalar; 0 without one."""
    return _sum_over(module, LinearConvSparse, lambda layer: layer.linear_weights.abs().sum())


@torch.no_grad()
def mean_correlation(module: nn.Module) -> float | None:
    """Return the mean of |C_ij|, i != j, over the primary filters of all LinearConv layers in `module`, in [0, 1].

    It is what :func:`corr_loss` sums, by pair of filters; None where there is no pair.
    """
    primary = [layer.primary_channels for layer in module.modules() if isinstance(layer, LinearConv)]
    pairs = sum(count * (count - 1) for count in primary)
    return corr_loss(module).item() / pairs if pairs else None


def _sum_over(module, kind, term):
    return sum((term(layer) for layer in module.modules() if isinstance(layer, kind)), torch.zeros(()))


def _off_diagonal(filters):
    """Sum of |C - I|."""
    if in_plain_eager_mode() and forward_ad._current_level < 0 and filters.dtype in (torch.float32, torch.float64):
        return _OffDiagonal.apply(filters)
    return _off_diagonal_by_autograd(filters)


def _off_diagonal_by_autograd(filters):
    correlation = filter_correlation(filters)
    return (correlation - torch.eye(len(filters), dtype=correlation.dtype, device=correlation.device)).abs().sum()


class _OffDiagonal(torch.autograd.Function):
    """The same with about a third of the work, as it stands in every training run.

    With U the standardised filters (rows of mean 0 and norm 1), C = U U^T and S its signs off the diagonal, the
    gradient by the filters of norm n is ((2 S - diag(r)) U) / n, r_i = 2 sum_j S_ij C_ij: one matrix product each way.
    """

    @staticmethod
    def forward(ctx, filters):
        rows = _rows(filters)
        unit, mean, inverse_deviation = torch.native_layer_norm(rows, rows.shape[1:], None, None, 0.0)
        size = rows.shape[1] ** 0.5  # of a vector of ones: U = unit / size
        norm = size / inverse_deviation
        constant = ~(norm > 4 * torch.finfo(rows.dtype).eps * torch.hypot(norm, size * mean))
        # Not in place on a GPU's word: asking whether there is one would make the step wait for the device.
        if filters.device.type != "cpu" or constant.any():
            unit = unit.masked_fill_(constant, 0)
        correlation = _upper_triangle(unit).div_(rows.shape[1])
        signs = correlation.sign().masked_fill_(correlation.abs() > 1, 0)  # as clamping has it
        absolute = correlation.clamp_(-1, 1).abs_()
        ctx.constant, ctx.scale = constant, inverse_deviation / rows.shape[1]
        ctx.save_for_backward(filters, unit, signs, absolute)
        return 2 * absolute.sum()

    @staticmethod
    def backward(ctx, grad):
        filters, unit, signs, absolute = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(_off_diagonal_by_autograd(filters), filters, grad, create_graph=True)
            return gradient
        # The gradient of the sum over both triangles, by the rows: 2 (S + S^T) U - diag(r) U.
        matrix = signs + signs.T
        toward = absolute.masked_fill(signs == 0, 0)
        matrix.diagonal().sub_(toward.sum(0) + toward.sum(1))
        matrix.mul_(2 * grad * ctx.scale).masked_fill_(ctx.constant, 0)
        return _unrows(matrix @ unit, filters)


def _rows(filters):
    """Flattened filters, their elements in the order in which they lie in memory; no copy of channels_last ones."""
    if filters.dim() == 4 and not filters.is_contiguous():
        filters = filters.permute(0, 2, 3, 1)
    return filters.flatten(1)


def _unrows(rows, filters):
    """What :func:`_rows` made of tensors like `filters`, back in their shape."""
    if filters.dim() == 4 and not filters.is_contiguous():
        batch, channels, height, width = filters.shape
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(filters.shape)


def _upper_triangle(unit):
    """The elements of unit @ unit.T above the diagonal, the others zero."""
    product = unit.new_zeros(len(unit), len(unit))
    for start in range(0, len(unit), BLOCK):
        torch.mm(unit[start : start + BLOCK], unit[start:].T, out=product[start : start + BLOCK, start:])
    return product.triu_(1)
