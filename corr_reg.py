"""The regularisers of LinearConv: correlation between primary filters, and the L1 term of the sparse variant.

    corr_loss = sum over layers of sum_ij | C - I |_ij
    l1_loss   = sum over sparse layers of sum | linear_weights |

`C` is the Pearson correlation matrix of a layer's flattened primary filters. Pushing it towards the identity keeps the
primary filters linearly independent, so that the network's redundancy stands in `A`, where it was put on purpose.
The paper adds 0.01 times each to the loss of every 10th batch.
"""

import torch

from linearconv import LinearConv
from linearconv_sparse import LinearConvSparse


def filter_correlation(filters):
    """Pearson correlation matrix of filters, as `numpy.corrcoef` of their flattened rows, clamped to [-1, 1].

    Args:
        filters (Tensor): (P, ...), at least two-dimensional; a filter is flattened to a vector.

    Returns:
        Tensor: (P, P). A constant filter (a one-element one too) has no correlation: its row and column are 0 and pass
        no gradient, where numpy gives nan; its diagonal element is 1 as any other's.
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
    correlation = (unit @ unit.T).clamp(-1, 1)
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return torch.where(identity.bool(), identity, correlation)


def corr_loss(module):
    """Sum of |C - I| over the primary filters of every LinearConv layer in `module`, itself included.

    Args:
        module (nn.Module): a layer or a network of any depth; a shared layer counts once.

    Returns:
        Tensor: scalar, differentiable; a float32 zero where there is no such layer. It is not divided by anything.
        Layers with more primary filters than filter elements (a 3x3 stem, depthwise ones) cannot reach 0.
    """
    return _sum(_off_diagonal(layer.conv_weights) for layer in _layers(module, LinearConv))


def l1_loss(module):
    """Sum of |linear_weights| over every LinearConvSparse layer in `module`; scalar, a float32 zero without one."""
    return _sum(layer.linear_weights.abs().sum() for layer in _layers(module, LinearConvSparse))


def _off_diagonal(filters):
    correlation = filter_correlation(filters)
    return (correlation - torch.eye(len(filters), dtype=correlation.dtype, device=correlation.device)).abs().sum()


def _layers(module, kind):
    return (layer for layer in module.modules() if isinstance(layer, kind))


def _sum(terms):
    return sum(terms, torch.zeros(()))
