"""The regularisers of LinearConv: correlation between primary filters, and the L1 term of the sparse variant.

    corr_loss = sum over layers of sum_ij | C - I |_ij        C = Pearson correlation matrix of the primary filters
    l1_loss   = sum over sparse layers of sum | linear_weights |

Pushing C towards the identity keeps the primary filters linearly independent, so that the redundancy of a network is
in the coefficients `A`. The paper adds 0.01 times each regulariser to the loss of every 10th batch.
"""

import torch
import torch.nn as nn
from torch import Tensor

from linearconv import LinearConv
from linearconv_sparse import LinearConvSparse


def filter_correlation(filters: Tensor) -> Tensor:
    """Return the Pearson correlation matrix of filters, `numpy.corrcoef` of the flattened filters.

    Args:
        filters: (P, ...), at least two-dimensional, real or complex.

    Returns:
        (P, P), Hermitian, with magnitudes clamped to 1 and ones on the diagonal. A constant filter, such as a filter
        of one element, has no correlation: its other entries are 0 and pass no gradient, where numpy returns nan.
    """
    return _off_diagonal(filters) + torch.eye(len(filters), dtype=filters.dtype, device=filters.device)


def corr_loss(module: nn.Module) -> Tensor:
    """Return the sum of |C - I| over the primary filters of every LinearConv layer in `module`, itself included.

    Args:
        module: a layer or a network; a shared layer counts once.

    Returns:
        A scalar, differentiable and not divided by any number; a float32 zero if there is no such layer. Layers with
        more primary filters than elements in a filter, such as a 3x3 stem and depthwise layers, cannot reach 0.
    """
    losses = [
        _off_diagonal(layer.conv_weights).abs().sum() for layer in module.modules() if isinstance(layer, LinearConv)
    ]
    return sum(losses, torch.zeros(()))


def l1_loss(module: nn.Module) -> Tensor:
    """Return the sum of |linear_weights| over every LinearConvSparse layer in `module`, a scalar; 0 without one."""
    layers = [layer for layer in module.modules() if isinstance(layer, LinearConvSparse)]
    return sum((layer.linear_weights.abs().sum() for layer in layers), torch.zeros(()))


@torch.no_grad()
def mean_correlation(module: nn.Module) -> float | None:
    """Return the mean of |C_ij|, i != j, over the primary filters of all LinearConv layers in `module`, in [0, 1].

    The mean is :func:`corr_loss` divided by the number of ordered pairs of filters, or None if there is no pair.
    """
    primary = [layer.primary_channels for layer in module.modules() if isinstance(layer, LinearConv)]
    pairs = sum(count * (count - 1) for count in primary)
    return corr_loss(module).item() / pairs if pairs else None


def _off_diagonal(filters):
    """Return C - I, (P, P), with zeros in the rows and columns of constant filters."""
    rows = filters.flatten(1)  # (P, K)
    shift = rows.sum(1, keepdim=True) / -rows.shape[1]  # minus the mean: adding it makes the backward pass cheaper
    centred = rows + shift
    covariance = centred @ centred.mH  # (P, P), not divided by K
    variance = covariance.diagonal().real
    # The variance of a constant filter is rounding error: its elements differ from the mean by a few machine epsilons.
    square = variance + rows.shape[1] * shift.squeeze(1).abs().square()
    varies = variance > (4 * torch.finfo(rows.dtype).eps) ** 2 * square  # (P,)
    deviation = torch.where(varies, variance, 1).sqrt()  # no division by 0, whose gradient would be nan
    correlation = covariance / (deviation[:, None] * deviation)
    correlation = correlation / correlation.abs().clamp(min=1)
    is_pair = varies[:, None] & varies & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(is_pair, correlation, 0)
