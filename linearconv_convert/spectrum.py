"""The errors of a layer for all numbers of primary filters, or all ranks, at once: the tails of one spectrum.

    e(P)^2 = sum_{i > P} s_i^2 / sum_i s_i^2        (Eckart-Young)

with s_i the singular values of a root S of what is fitted, see fitting.py. Of a LinearConvLowRank with P primary
filters, they are those of the combined part A T S, and what P primary filters leave over adds to them; its fit comes
out a little better, as it goes on alternating from there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from linearconv_convert import fitting

MOST_VALUES = 64  # that a layer chooses from


@dataclass(frozen=True)
class Spectrum:
    """The errors of one layer; a value is its number of primary filters, or the rank of its coefficients."""

    errors: Tensor  # relative, in the Frobenius norm, of the values 0, 1, ...
    setting: Callable[[int], dict[str, float]]  # alpha or rank that stands for a value
    projection: Callable[[int], Tensor]  # Q (F, F), with Q W the filters, Q y the outputs that a value leaves of W, y

    def fewest(self, error: float) -> int:
        """Return the smallest value within an error, or the largest there is."""
        return min(max(1, int((self.errors > error).sum())), len(self.errors) - 1)

    def values(self) -> list[int]:
        """Return the values to choose from, at even distances."""
        most = len(self.errors) - 1
        return sorted({1, *range(most, 0, -math.ceil(most / MOST_VALUES))})


def full_rank_spectrum(root: Tensor) -> Spectrum:
    """Return the errors of LinearConv with P = 0, ..., F - 1, for a root S (F, r)."""
    filters = len(root)
    left, values, _ = torch.linalg.svd(root, full_matrices=False)
    squares = root.new_zeros(filters)
    squares[: len(values)] = _tails(values)[:filters]
    return Spectrum(
        (squares / _total(root)).sqrt(),
        lambda primary: {"alpha": alpha_of(primary, filters)},
        lambda primary: left[:, :primary] @ left[:, :primary].T,
    )


def low_rank_spectrum(root: Tensor, primary: int) -> Spectrum:
    """Return the errors of LinearConvLowRank with R = 0, ..., min(P, F - P), for P and a root S (F, r)."""
    full = fitting.full_rank(root, primary)
    left, values, _ = torch.linalg.svd(full @ fitting.primary_of(full, root), full_matrices=False)
    values = values[: min(full.shape)]
    squares = fitting.error(full, root) ** 2 + torch.cat((_tails(values), values.new_zeros(1)))
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)

    def projection(rank):
        return identity - fitting.residual(left[:, :rank] @ (left[:, :rank].T @ full), identity)

    return Spectrum((squares / _total(root)).sqrt(), lambda rank: {"rank": rank}, projection)


def alpha_of(primary: int, out_channels: int) -> float:
    """Return the share for which a layer has exactly so many primary filters, P = int(alpha F)."""
    alpha = primary / out_channels
    return alpha if int(alpha * out_channels) == primary else math.nextafter(alpha, 1)


def _tails(values):
    """Sums of squares of all but the first 0, 1, ... values."""
    return values.square().flip(0).cumsum(0).flip(0)


def _total(root):
    return root.square().sum().clamp_min(torch.finfo(root.dtype).tiny)
