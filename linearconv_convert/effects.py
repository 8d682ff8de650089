"""What a network loses when one of its layers gets fewer primary filters, from the layer's relative error e.

    d = -log(1 - e^2)                        of filters: the sum over layers is -log of the product of the shares
                                             of variance that they keep
    d = s (-log(1 - e^2))^q                  of outputs: fitted to what calibration images show of the network's output,
                                             |f'(x) - f(x)|^2 / |f(x)|^2 for f' with this layer alone cut down

f' keeps the first components of the layer's outputs, which is what LinearConv can keep, as many as leave the errors
`MEASURED`. s and q are those of the two measurements around e, with q = 1 below the least and above the largest.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
import torch.nn as nn

from linearconv_convert.calibration import Moments
from linearconv_convert.inputs import Call, tensors_of
from linearconv_convert.spectrum import Spectrum
from linearconv_convert.surgery import eval_with_hooks

MEASURED = (0.8, 0.5, 0.25, 0.1)
IMAGES = 64  # that the effects are measured on
SMALLEST = 1e-30  # effect, where there is none
LARGEST = 1 - 1e-9  # error, as a layer that keeps nothing would cost infinitely much


@dataclass(frozen=True)
class Effect:
    """What the network loses by the error of one layer."""

    points: tuple[tuple[float, float], ...] = ((1.0, 1.0),)  # (-log(1 - e^2), d), of rising e

    def at(self, error: float) -> float:
        """Return d for a relative error e of the layer."""
        lost = _lost(error)
        after = min(bisect_left(self.points, (lost,)), len(self.points) - 1)
        before = max(after - 1, 0) if lost <= self.points[-1][0] else after
        (low, least), (high, most) = self.points[before], self.points[after]
        power = math.log(most / least) / math.log(high / low) if low < high else 1.0
        return least * (lost / low) ** power


def expected_error(loss: float) -> float:
    """Return the relative error that a sum of losses d stands for."""
    return (1 - math.exp(-loss)) ** 0.5


def _lost(error):
    """-log of the share of variance that a layer keeps."""
    return -math.log1p(-(min(error, LARGEST) ** 2))


@torch.no_grad()
def measure_effects(
    model: nn.Module,
    layers: dict[str, nn.Conv2d],
    spectra: dict[str, Spectrum],
    moments: dict[str, Moments],
    call: Call,
) -> dict[str, Effect]:
    """Measure what a network loses by each of its layers, one at a time.

    Args:
        model: with the convolutions; left as it was.
        layers: {name: convolution} of the model.
        spectra: of those to measure.
        moments: of their outputs, whose means are kept through the biases; of those layers that were calibrated.
        call: the images, of which the first `IMAGES` are taken.

    Returns:
        {name: effect}; those of filters where the outputs of two runs cannot be compared.
    """
    call, effects = call.images(slice(IMAGES)), {}
    with eval_with_hooks(model, {}, None):
        expected = _outputs(call.run(model))
        for name, spectrum in spectra.items():
            points = {}
            for value in {spectrum.fewest(error) for error in MEASURED}:
                changed = _cut_down(name, layers[name], spectrum.projection(value), moments.get(name))
                outputs = _outputs(call.run(model, changed))
                change = _change(outputs, expected)
                if not math.isfinite(change):
                    return dict.fromkeys(spectra, Effect())
                if (lost := _lost(spectrum.errors[value].item())) > 0:
                    points[lost] = max(change, SMALLEST)
            effects[name] = Effect(tuple(sorted(points.items()))) if points else Effect()
    return effects


def _cut_down(name, layer, projection, moments):
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
