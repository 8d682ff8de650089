"""Allocation of primary filters, or of ranks for `lowrank`, to layers with the least loss at a given network size.

    minimise  sum_l d_l(P_l)    such that    sum_l size_l(P_l) <= budget

d_l(P_l) is the loss of the network if layer l has P_l primary filters (losses.py). The allocation works on the lower
convex hull of each layer's points (size, d): it takes the edges of all hulls in the order of their gain per size until
the budget is spent. The plain convolution is one of the points, so layers without a gain stay plain.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch.nn as nn

from linearconv_convert.calibration import Moments
from linearconv_convert.inputs import Call
from linearconv_convert.losses import LossCurve, expected_error, full_rank_spectrum, low_rank_spectrum, measure_losses
from linearconv_convert.report import count_macs, count_parameters
from linearconv_convert.surgery import ConversionError
from linearconv_convert.weights import linearconv_like, root_of_layer
from linearconv_variants import Variant

UNITS = ("parameters", "macs")


@dataclass(frozen=True)
class CompressionTarget:
    """The target size or the target error of a conversion; false if neither is set."""

    budget: float | None = None  # target size, as a share of the size of the whole model
    of: str = "parameters"  # unit of the size, one of `UNITS`
    error: float | None = None  # relative error of each layer
    evaluate: Callable[[nn.Module], float] | None = None  # a metric of the model, higher is better

    def __post_init__(self) -> None:
        if self.of not in UNITS:
            raise ValueError(f"of must be one of {', '.join(UNITS)}, got {self.of!r}")
        for name, value in (("budget", self.budget), ("error", self.error)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        if self.budget is not None and self.error is not None:
            raise ConversionError("budget and error exclude each other: give one of them")

    def __bool__(self) -> bool:
        return self.budget is not None or self.error is not None

    def check(self, type: str, rank: object, alpha: object) -> None:
        """Raise a ConversionError for settings that contradict the target."""
        if not self:
            if self.evaluate is not None:
                raise ConversionError("evaluate measures the layers for a budget: give budget=")
            if type == "lowrank" and rank is None:
                raise ConversionError("lowrank needs a rank, as rank=64, or a budget for all ranks, as budget=0.5")
            return
        if type not in ("rank", "lowrank") or (type == "rank" and rank is not None):
            raise ConversionError("budget and error choose alpha for full rank, or the ranks of lowrank, nothing else")
        chosen, given = ("alpha", alpha) if type == "rank" else ("rank", rank)
        if given is not None:
            raise ConversionError(f"budget and error choose {chosen}: leave it out")


class Option(NamedTuple):
    """A possible setting of a layer."""

    setting: dict[str, float]  # alpha or rank; empty for the plain convolution
    size: int  # parameters or multiply-adds
    loss: float = 0.0  # loss d
    error: float = 0.0  # relative error of the layer


@dataclass(frozen=True)
class Allocation:
    """The settings chosen for a target; empty without a target."""

    variants: dict[str, Variant | None] = field(default_factory=dict)  # by layer; None for a plain convolution
    expected: dict[str, float] = field(default_factory=dict)  # relative error of the network's output, by layer
    together: float | None = None  # relative error of the network's output by all layers
    curve: list[tuple[float, float]] = field(default_factory=list)  # (size, expected error) of the best choices


def allocate(
    model: nn.Module,
    layers: dict[str, nn.Conv2d],
    variants: dict[str, Any],
    moments: dict[str, Moments],
    positions: dict[str, float],
    macs: int | None,
    call: Call | None,
    target: CompressionTarget,
) -> Allocation:
    """Choose alpha, or the rank, for the layers of a model; `layers` are {name: equivalent convolution}."""
    if not target:
        return Allocation()
    in_macs = target.of == "macs"
    if in_macs and macs is None:
        raise ConversionError("of='macs' needs example_input or calibration: multiply-adds depend on the size of maps")
    spectra = {}
    for name, layer in layers.items():
        new = linearconv_like(layer, variants[name].conv, device="meta")
        if new.secondary_channels:
            root = root_of_layer(layer, moments.get(name))
            if variants[name].type == "lowrank":
                spectra[name] = low_rank_spectrum(root, new.primary_channels)
            else:
                spectra[name] = full_rank_spectrum(root, moments[name].metric if name in moments else None)
    losses = dict.fromkeys(spectra, LossCurve())
    if target.evaluate is not None or call is not None:
        losses = measure_losses(model, spectra, moments, call, target.evaluate)
    expected_of = float if target.evaluate else expected_error

    options, chosen = {}, {}
    for name, spectrum in spectra.items():
        size_of = partial(count_macs, positions=positions.get(name, 0)) if in_macs else count_parameters
        options[name] = [Option({}, size_of(layers[name]))]
        for value in sorted({*spectrum.values(), spectrum.smallest_within(target.error or 1.0)}):
            setting, error = spectrum.setting(value), spectrum.errors[value].item()
            size = size_of(linearconv_like(layers[name], replace(variants[name], **setting).conv, device="meta"))
            if size < options[name][0].size:
                options[name].append(Option(setting, size, losses[name].at(error), error))
        within = [option for option in options[name] if option.error <= (target.error or 0)]
        chosen[name] = min(within, key=lambda option: option.size)
    whole = macs if in_macs and macs else count_parameters(model)
    others = whole - sum(plain.size for plain, *_ in options.values())
    if target.budget is not None:
        smallest = others + sum(min(option.size for option in each) for each in options.values())
        if smallest > target.budget * whole:
            least = f"the smallest size is {math.ceil(1e4 * smallest / whole) / 1e4:g} of the model's"
            raise ConversionError(f"budget={target.budget:g} cannot be reached: {least}")
        chosen = share_out(options, target.budget * whole - others)
    settings = {name: option.setting for name, option in chosen.items()}
    return Allocation(
        {name: replace(variants[name], **setting) if setting else None for name, setting in settings.items()},
        {name: expected_of(option.loss) for name, option in chosen.items()},
        expected_of(sum(option.loss for option in chosen.values())),
        [((others + size) / whole, expected_of(loss)) for size, loss in curve_of(options)],
    )


def share_out(options: dict[str, list[Option]], budget: float) -> dict[str, Option]:
    """Choose an option for each layer, with a small sum of losses and the sum of sizes within a budget."""
    chosen = {name: _hull(each)[0] for name, each in options.items()}
    room = budget - sum(option.size for option in chosen.values())
    full = set()
    for name, before, after in _edges(options):
        if name in full or after.size - before.size > room:
            full.add(name)
        else:
            chosen[name], room = after, room - (after.size - before.size)
    for name in sorted(chosen, key=lambda name: -chosen[name].loss):  # spend the rest on points above the hulls
        within = [option for option in options[name] if option.size - chosen[name].size <= room]
        best = min(within, key=lambda option: (option.loss, option.size))
        chosen[name], room = best, room - (best.size - chosen[name].size)
    return chosen


def curve_of(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    """Return the sums (size, loss) of the best choices, from the smallest size to all layers plain."""
    first = [_hull(each)[0] for each in options.values()]
    size, loss = sum(option.size for option in first), sum(option.loss for option in first)
    curve = [(size, loss)]
    for _, before, after in _edges(options):
        size, loss = size + after.size - before.size, loss + after.loss - before.loss
        curve.append((size, max(loss, 0.0)))
    return curve


def _edges(options):
    """Edges (name, option, larger option) of all hulls, sorted by decreasing gain per size."""
    edges = []
    for name, each in options.items():
        hull = _hull(each)
        edges += [(name, before, after) for before, after in zip(hull, hull[1:], strict=False)]
    return sorted(edges, key=lambda edge: -_gain(*edge[1:]))


def _hull(options: Iterable[Option]) -> list[Option]:
    """The options on the lower convex hull of (size, loss), sorted by increasing size."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.size, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(before, after):
    return (before.loss - after.loss) / (after.size - before.size)
