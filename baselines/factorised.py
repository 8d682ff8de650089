"""Two convolutions that replace one, the form of a truncated SVD: to r channels, then by 1x1 to F channels.

    FactorisedConv(nn.Conv2d(64, 128, 3, padding=1), alpha=0.5)       # to 58 channels by 3x3, to 128 by 1x1

This is the usual factorised layer. Above rank 1 it has at most the weights of full-rank LinearConv with the same alpha:
r (K + F) <= P K + (F - P) P with K = C kh kw and P = max(1, int(alpha * F)). Its rank r is lower than LinearConv's P.
"""

import torch.nn as nn

from baselines.drop_in import like


class FactorisedConv(nn.Sequential):
    """Two convolutions, with the weights of the LinearConv layer whose share of primary filters is `alpha`."""

    def __init__(self, plain: nn.Conv2d, alpha: float = 0.5) -> None:
        filters, size = plain.out_channels, plain.weight[0].numel()  # F, K
        primary = max(1, int(alpha * filters))  # P
        rank = max(1, (primary * size + (filters - primary) * primary) // (size + filters))
        combine = nn.Conv2d(rank, filters, 1, bias=plain.bias is not None)
        super().__init__(like(plain, plain.in_channels, rank, bias=False), combine)
