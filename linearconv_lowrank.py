"""LinearConvLowRank: LinearConv whose coefficients are a product of two thin factors, A = column @ row."""

from numbers import Integral
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from linearconv import LinearConv


class LinearConvLowRank(LinearConv):
    """LinearConv with A = column_weights @ row_weights of constant rank; the rows "-LRr" of the paper (rank 10).

    Args:
        rank: inner dimension R >= 1 of the two factors, as in the published code and its parameter counts. A rank above
            R = min(P, F - P) adds parameters to `A` without more expressive power. A layer without secondary filters
            has factors of rank 0. Default: 10

    All other arguments are those of :class:`linearconv.LinearConv`.

    Parameters:
        - conv_weights (P, in_channels / groups, kh, kw), Xavier uniform
        - column_weights (out_channels - P, R) and row_weights (R, P), both U(-0.1, 0.1)
        - bias (out_channels,), U(-0.1, 0.1), or None

    Raises:
        ValueError: for a rank that is not an integer of at least 1.
    """

    def __init__(self, *args: Any, rank: int = 10, **kwargs: Any) -> None:
        self.rank = self._check_rank(rank)  # set first: LinearConv.__init__ creates the factors
        super().__init__(*args, **kwargs)

    @staticmethod
    def _check_rank(rank):
        if not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
        return int(rank)

    def _inner_dimension(self):
        return self.rank

    def _create_factors(self, **factory):
        inner = self._inner_dimension() if self.secondary_channels else 0
        self.column_weights = nn.Parameter(torch.empty(self.secondary_channels, inner, **factory))
        self.row_weights = nn.Parameter(torch.empty(inner, self.primary_channels, **factory))

    def factors(self) -> tuple[Tensor, ...]:
        return self.column_weights, self.row_weights

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank:g}"
