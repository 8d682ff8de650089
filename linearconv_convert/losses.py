"""The loss of a network by a LinearConv layer: relative errors e for all P, or all ranks, and the resulting losses d.

    e(P)^2 = sum_{i > P} s_i^2 / sum_i s_i^2        (Eckart-Young; s_i the singular values of the root S, fitting.py)
    d = -log(1 - e^2)                               by filters: the sum over layers is -log of the product of the shares
                                                    of variance that the layers keep
    d = s (-log(1 - e^2))^q                         by outputs: fitted to |f'(x) - f(x)|^2 / |f(x)|^2 on calibration
                                                    images, or to the lost share of a metric

f' is the network f in which only this layer keeps the first components of its outputs. The loss is measured at the
errors `MEASURED_ERRORS`. The two measurements around e determine s and q; q = 1 outside of the measured range.
"""

import copy
import math
import sys
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from linearconv_convert import fitting
from linearconv_convert.calibration import Moments
from linearconv_convert.inputs import Call, tensors_of
from linearconv_convert.surgery import eval_with_hooks

MAX_VALUES = 64  # number of settings that are compared for a layer
MEASURED_ERRORS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
MAX_IMAGES = 64  # number of images for the measurements
MIN_LOSS = 1e-30  # loss of a layer without a measured effect
MAX_ERROR = 1 - 1e-9  # an error of 1 would have an infinite loss


class Spectrum(NamedTuple):
    """The errors of one layer for each value: the number of primary filters, or the rank of the coefficients."""

    errors: Tensor  # relative errors in the Frobenius norm, for the values 0, 1, ...
    setting: Callable[[int], dict[str, float]]  # alpha or rank for a value
    projection: Callable[[int], Tensor]  # Q (F, F) for a value: filters Q W, outputs Q y

    def smallest_within(self, error: float) -> int:
        """Return the smallest value whose error is within `error`, or the largest value if there is none."""
        return min(max(1, int((self.errors > error).sum())), len(self.errors) - 1)

    def values(self) -> list[int]:
        """Return evenly spaced values to choose from."""
        most = len(self.errors) - 1
        return sorted({1, *range(most, 0, -math.ceil(most / MAX_VALUES))})


def full_rank_spectrum(root: Tensor, metric: Tensor | None = None) -> Spectrum:
    """Return the errors of LinearConv with P = 0, ..., F - 1, for a root S (F, r) and a metric (F, F)."""
    filters = len(root)
    values, basis, dual = fitting.components(root, metric)
    squares = root.new_zeros(filters)
    squares[: len(values)] = _tails(values)[:filters]
    return Spectrum(
        (squares / _total(values)).sqrt(),
        lambda primary: {"alpha": alpha_of(primary, filters)},
        lambda primary: basis[:, :primary] @ dual[:primary],
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
    """Return a share alpha with which a layer has exactly `primary` primary filters, P = int(alpha F)."""
    alpha = primary / out_channels
    return alpha if int(alpha * out_channels) == primary else math.nextafter(alpha, 1)


def _tails(values):
    """Sums of squares of all values except the first 0, 1, ... values."""
    return values.square().flip(0).cumsum(0).flip(0)


def _total(root):
    return root.square().sum().clamp_min(torch.finfo(root.dtype).tiny)


class LossCurve(NamedTuple):
    """The loss of the network as a function of the error of one layer; by default the loss by filters."""

    points: tuple[tuple[float, float], ...] = ((1.0, 1.0),)  # (-log(1 - e^2), d), sorted by e

    def at(self, error: float) -> float:
        """Return d for a relative error e of the layer."""
        x = _filter_loss(error)
        after = min(bisect_left(self.points, (x,)), len(self.points) - 1)
        before = max(after - 1, 0) if x <= self.points[-1][0] else after
        (x_before, d_before), (x_after, d_after) = self.points[before], self.points[after]
        power = math.log(d_after / d_before) / math.log(x_after / x_before) if x_before < x_after else 1.0
        return d_before * (x / x_before) ** power


def expected_error(loss: float) -> float:
    """Return the relative error of the network's output for a sum of losses d."""
    return (1 - math.exp(-loss)) ** 0.5


def _filter_loss(error):
    return -math.log1p(-(min(error, MAX_ERROR) ** 2))


@torch.no_grad()
def measure_losses(
    model: nn.Module,
    spectra: dict[str, Spectrum],
    moments: dict[str, Moments],
    call: Call | None,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> dict[str, LossCurve]:
    """Measure the loss of a network by each layer, one layer at a time, and print the progress on a terminal.

    The model's parameters are unchanged afterwards. The loss is the lost share of the metric `evaluate`, or the change
    of the output on the first `MAX_IMAGES` images of `call`. Curves are the default if outputs cannot be compared.
    """
    curves = {}
    with eval_with_hooks(model, {}):
        expected = _measured(model, call, evaluate)
        for number, (name, spectrum) in enumerate(spectra.items(), 1):
            if sys.stderr.isatty():
                end = "\n" if number == len(spectra) else ""
                print(f"\rmeasuring layer {number} of {len(spectra)}", end=end, file=sys.stderr, flush=True)
            layer: Any = model.get_submodule(name)
            points = {}
            kept = copy.deepcopy(layer.state_dict())
            for value in {spectrum.smallest_within(error) for error in MEASURED_ERRORS}:
                projection = spectrum.projection(value)
                layer.weight.copy_((projection @ kept["weight"].double().flatten(1)).view_as(layer.weight))
                if layer.bias is not None and name in moments:
                    mean = moments[name].mean
                    layer.bias.copy_(kept["bias"] + mean - projection @ mean)
                loss = _lost(_measured(model, call, evaluate), expected)
                if not math.isfinite(loss):
                    return dict.fromkeys(spectra, LossCurve())
                x = _filter_loss(spectrum.errors[value].item())
                if x > 0:
                    points[x] = max(loss, MIN_LOSS)
            layer.load_state_dict(kept)
            curves[name] = LossCurve(tuple(sorted(points.items()))) if points else LossCurve()
    return curves


def _measured(model, call, evaluate):
    """The metric of a model, or its output tensors."""
    if evaluate is not None:
        return float(evaluate(model))
    tensors = tensors_of(call.images(slice(MAX_IMAGES)).run(model))
    return [output.double() for output in tensors if output.is_floating_point()]


def _lost(found, expected):
    """The lost share of a metric, or the mean of the relative squared differences of outputs; NaN for other shapes."""
    if isinstance(expected, float):
        return (expected - found) / max(abs(expected), MIN_LOSS)
    if not expected or [output.shape for output in found] != [output.shape for output in expected]:
        return math.nan
    total = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        total += (ours - theirs).square().sum() / theirs.square().sum().clamp_min(torch.finfo(theirs.dtype).tiny)
    return total.item() / len(found)
