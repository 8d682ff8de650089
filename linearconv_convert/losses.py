"""The errors of a layer for all numbers of primary filters, or all ranks, at once: the tails of one spectrum.

    e(P)^2 = sum_{i > P} s_i^2 / sum_i s_i^2        (Eckart-Young)

with s_i the singular values of a root S of what is fitted, see fitting.py. Of a LinearConvLowRank with P primary
filters, they are those of the combined part A T S, and what P primary filters leave over adds to them; its fit comes
out a little better, as it goes on alternating from there.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from linearconv_convert import fitting
from linearconv_convert.calibration import Moments
from linearconv_convert.inputs import Call, tensors_of
from linearconv_convert.surgery import eval_with_hooks

MAX_VALUES = 64  # that a layer chooses from


@dataclass(frozen=True)
class Spectrum:
    """The errors of one layer; a value is its number of primary filters, or the rank of its coefficients."""

    errors: Tensor  # relative, in the Frobenius norm, of the values 0, 1, ...
    setting: Callable[[int], dict[str, float]]  # alpha or rank that stands for a value
    projection: Callable[[int], Tensor]  # Q (F, F), with Q W the filters, Q y the outputs that a value leaves of W, y

    def smallest_within(self, error: float) -> int:
        """Return the smallest value within an error, or the largest there is."""
        return min(max(1, int((self.errors > error).sum())), len(self.errors) - 1)

    def values(self) -> list[int]:
        """Return the values to choose from, at even distances."""
        most = len(self.errors) - 1
        return sorted({1, *range(most, 0, -math.ceil(most / MAX_VALUES))})


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


MEASURED_ERRORS = (0.8, 0.5, 0.25, 0.1)
MAX_IMAGES = 64  # that the effects are measured on
MIN_LOSS = 1e-30  # effect, where there is none
MAX_ERROR = 1 - 1e-9  # error, as a layer that keeps nothing would cost infinitely much


@dataclass(frozen=True)
class LossCurve:
    """What the network loses by the error of one layer."""

    points: tuple[tuple[float, float], ...] = ((1.0, 1.0),)  # (-log(1 - e^2), d), of rising e

    def at(self, error: float) -> float:
        """Return d for a relative error e of the layer."""
        lost = _filter_loss(error)
        after = min(bisect_left(self.points, (lost,)), len(self.points) - 1)
        before = max(after - 1, 0) if lost <= self.points[-1][0] else after
        (low, least), (high, most) = self.points[before], self.points[after]
        power = math.log(most / least) / math.log(high / low) if low < high else 1.0
        return least * (lost / low) ** power


def expected_error(loss: float) -> float:
    """Return the relative error that a sum of losses d stands for."""
    return (1 - math.exp(-loss)) ** 0.5


def _filter_loss(error):
    """-log of the share of variance that a layer keeps."""
    return -math.log1p(-(min(error, MAX_ERROR) ** 2))


@torch.no_grad()
def measure_losses(
    model: nn.Module,
    layers: dict[str, nn.Conv2d],
    spectra: dict[str, Spectrum],
    moments: dict[str, Moments],
    call: Call,
) -> dict[str, LossCurve]:
    """Measure what a network loses by each of its layers, one at a time.

    Args:
        model: with the convolutions; left as it was.
        layers: {name: convolution} of the model.
        spectra: of those to measure.
        moments: of their outputs, whose means are kept through the biases; of those layers that were calibrated.
        call: the images, of which the first `MAX_IMAGES` are taken.

    Returns:
        {name: effect}; those of filters where the outputs of two runs cannot be compared.
    """
    call, curves = call.images(slice(MAX_IMAGES)), {}
    with eval_with_hooks(model, {}, None):
        expected = _outputs(call.run(model))
        for name, spectrum in spectra.items():
            points = {}
            for value in {spectrum.smallest_within(error) for error in MEASURED_ERRORS}:
                changed = _truncated_parameters(name, layers[name], spectrum.projection(value), moments.get(name))
                outputs = _outputs(call.run(model, changed))
                change = _change(outputs, expected)
                if not math.isfinite(change):
                    return dict.fromkeys(spectra, LossCurve())
                if (lost := _filter_loss(spectrum.errors[value].item())) > 0:
                    points[lost] = max(change, MIN_LOSS)
            curves[name] = LossCurve(tuple(sorted(points.items()))) if points else LossCurve()
    return curves


def _truncated_parameters(name, layer, projection, moments):
    """The parameters of a layer whose outputs are projected, under their names in the model."""
    prefix = f"{name}." if name else ""
    weight = projection @ layer.weight.double().flatten(1)
    changed = {f"{prefix}weight": weight.to(layer.weight.dtype).view_as(layer.weight)}
    if layer.bias is not None and moments is not None:
        lost = moments.mean - projection @ moments.mean
        changed[f"{prefix}bias"] = layer.bias + lost.to(layer.bias.dtype)
    return changed


def _outputs(tree):
    return [output.double() for output in tensors_of(tree) if output.is_floating_point()]


def _change(outputs, expected):
    """Relative squared difference, the mean over the output tensors; NaN where they do not correspond."""
    if not expected or [output.shape for output in outputs] != [output.shape for output in expected]:
        return math.nan
    changes = [
        (ours - theirs).square().sum() / theirs.square().sum().clamp_min(torch.finfo(theirs.dtype).tiny)
        for ours, theirs in zip(outputs, expected, strict=True)
    ]
    return sum(changes).item() / len(changes)
