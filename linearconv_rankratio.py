"""LinearConvRankRatio: low-rank LinearConv whose rank is a share of the primary filters, R = max(1, int(P * rank))."""

from numbers import Real
from typing import Any

from linearconv_lowrank import LinearConvLowRank


class LinearConvRankRatio(LinearConvLowRank):
    """LinearConv with A = column_weights @ row_weights of rank R = max(1, int(P * rank)).

    Args:
        rank: share of the P primary filters, 0 < rank <= 1. With rank 1 the factors can represent any `A`, but have
            more parameters than `A`; :class:`linearconv.LinearConv` is vanilla full rank. Default: 0.5

    All other arguments and the parameters are those of :class:`linearconv_lowrank.LinearConvLowRank`.

    Raises:
        ValueError: for a rank outside (0, 1].
    """

    def __init__(self, *args: Any, rank: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, rank=rank, **kwargs)  # type: ignore[arg-type]

    @staticmethod
    def _check_rank(rank):
        if not isinstance(rank, Real) or isinstance(rank, bool) or not 0 < rank <= 1:
            raise ValueError(f"rank must be a share of the primary filters in (0, 1], got {rank!r}")
        return float(rank)

    def _inner_dimension(self):
        return max(1, int(self.primary_channels * self.rank))
