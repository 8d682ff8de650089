"""Two convolutions in the place of one, to r channels and by 1x1 to F: the form of a truncated SVD.

    FactorisedConv(nn.Conv2d(64, 128, 3, padding=1), alpha=0.5)       # to 58 channels by 3x3, to 128 by 1x1

The usual factorised layer. Above rank 1 it has at most as many weights as full-rank LinearConv with the same alpha,
r (K + F) <= P K + (F - P) P with K = C kh kw and P = max(1, int(alpha * F)): its rank r is lower than LinearConv's P.
"""

import torch.nn as nn

from baselines.drop_in import factory, like


class FactorisedConv(nn.Sequential):
    """Two convolutions in the place of one.

    Args:
        plain: the convolution whose channels, geometry, bias, device and dtype are taken; `groups` must be 1.
        alpha: share of primary filters of the LinearConv whose number of weights is not exceeded.

    Shapes:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, H', W'), as of `plain`
    """

    def __init__(self, plain: nn.Conv2d, alpha: float = 0.5) -> None:
        filters, size = plain.out_channels, plain.weight[0].numel()  # F, K
        primary = max(1, int(alpha * filters))  # P
        rank = max(1, (primary * size + (filters - primary) * primary) // (size + filters))
        combine = nn.Conv2d(rank, filters, 1, bias=plain.bias is not None, **factory(plain))
        super().__init__(like(plain, plain.in_channels, rank, bias=False), combine)
