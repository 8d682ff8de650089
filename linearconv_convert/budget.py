"""Primary filters shared out over the layers, so that a network of a given size loses least.

    minimise  sum_l d_l(P_l)    such that    sum_l size_l(P_l) <= budget

with d_l what the network loses by layer l (effects.py) at the error that P_l filters leave (spectrum.py). The least sum
lies on the lower convex hulls of the layers' points (size, d): their edges are taken in the order of what they gain for
their size, until the budget is spent. The plain convolution is one of the points, so that layers in which nothing is
won stay as they are. For `lowrank`, ranks are shared out in the same way.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch.nn as nn

from linearconv_convert.calibration import CalibrationStats
from linearconv_convert.losses import (
    LossCurve,
    Spectrum,
    expected_error,
    full_rank_spectrum,
    low_rank_spectrum,
    measure_losses,
)
from linearconv_convert.report import count_macs, count_parameters
from linearconv_convert.surgery import ConversionError
from linearconv_convert.weights import linearconv_like, root_of_layer
from linearconv_variants import Variant


@dataclass(frozen=True)
class Option:
    """What one layer may become."""

    setting: dict[str, float]  # alpha or rank; empty for the plain convolution
    size: int  # parameters or multiply-adds
    loss: float = 0.0  # d


def plan(
    spectra: dict[str, Spectrum],
    curves: dict[str, LossCurve],
    size_of: Callable[[str, dict[str, float]], int],
    whole: int,
    budget: float | None = None,
    error: float | None = None,
) -> tuple[dict[str, Option], list[tuple[float, float]]]:
    """Choose the number of primary filters, or the rank, of each layer.

    Args:
        spectra, curves: of all layers to choose for, by name.
        size_of: size of a layer (name, setting), an empty setting standing for the plain convolution.
        whole: size of the whole model, these layers plain.
        budget: share of the whole model's size that the result may have.
        error: relative error that each layer may have, given instead of a budget.

    Returns:
        {name: option}, and the curve (size as a share of the whole model's, expected error) of the best choices for all
        sizes, the smallest first.

    Raises:
        ConversionError: where the budget cannot be reached; it names the smallest that can.
    """
    options, chosen = {}, {}
    for name, spectrum in spectra.items():

        def option(value, name=name, spectrum=spectrum):
            setting = spectrum.setting(value)
            return Option(setting, size_of(name, setting), curves[name].at(spectrum.errors[value].item()))

        plain = chosen[name] = Option({}, size_of(name, {}))
        options[name] = [plain, *(each for each in map(option, spectrum.values()) if each.size < plain.size)]
        if error is not None and spectrum.errors[fewest := spectrum.smallest_within(error)] <= error:
            chosen[name] = min(plain, option(fewest), key=lambda each: each.size)
    others = whole - sum(each[0].size for each in options.values())
    if budget is not None:
        smallest = others + sum(min(option.size for option in each) for each in options.values())
        if smallest > budget * whole:
            least = math.ceil(1e4 * smallest / whole) / 1e4
            raise ConversionError(f"budget={budget:g} cannot be reached: the smallest size is {least:g} of the model's")
        chosen = share_out(options, budget * whole - others)
    return chosen, [((others + size) / whole, expected_error(loss)) for size, loss in curve_of(options)]


def share_out(options: dict[str, list[Option]], budget: float) -> dict[str, Option]:
    """Choose an option for each layer, such that the sum of losses is least for a sum of sizes within a budget."""
    chosen = {name: _hull(each)[0] for name, each in options.items()}
    room = budget - sum(option.size for option in chosen.values())
    full = set()
    for name, before, after in _edges(options):
        if name in full or after.size - before.size > room:
            full.add(name)
        else:
            chosen[name], room = after, room - (after.size - before.size)
    for name in sorted(chosen, key=lambda name: -chosen[name].loss):  # what is left is spent on points off the hulls
        within = [option for option in options[name] if option.size - chosen[name].size <= room]
        best = min(within, key=lambda option: (option.loss, option.size))
        chosen[name], room = best, room - (best.size - chosen[name].size)
    return chosen


def curve_of(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    """Return the sums (size, loss) of the best choices, from the smallest to all layers plain."""
    first = [_hull(each)[0] for each in options.values()]
    size, loss = sum(option.size for option in first), sum(option.loss for option in first)
    curve = [(size, loss)]
    for _, before, after in _edges(options):
        size, loss = size + after.size - before.size, loss + after.loss - before.loss
        curve.append((size, max(loss, 0.0)))
    return curve


def _edges(options):
    """Edges (name, option, larger option) of all hulls, those that gain most for their size first."""
    hulls = {name: _hull(each) for name, each in options.items()}
    edges = [(name, *edge) for name, hull in hulls.items() for edge in zip(hull, hull[1:], strict=False)]
    return sorted(edges, key=lambda edge: -_gain(*edge[1:]))


def _hull(options: Iterable[Option]) -> list[Option]:
    """The options on the lower convex hull of (size, loss), the smallest first."""
    hull = []
    for option in sorted(options, key=lambda option: (option.size, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(before, after):
    return (before.loss - after.loss) / (after.size - before.size)


UNITS = ("parameters", "macs")


@dataclass(frozen=True)
class CompressionTarget:
    """What a conversion shall come to, if anything: a size, or an error.

    Raises:
        ValueError: for a value out of range.
        ConversionError: for both at once.
    """

    budget: float | None = None  # share of the whole model's size that the result may have
    of: str = "parameters"  # what the size is, one of `UNITS`
    error: float | None = None  # relative, of each layer

    def __post_init__(self) -> None:
        if self.of not in UNITS:
            raise ValueError(f"of must be one of {', '.join(UNITS)}, got {self.of!r}")
        for name in ("budget", "error"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")
        if self.budget is not None and self.error is not None:
            raise ConversionError("budget and error exclude each other: give one of them")

    def __bool__(self) -> bool:
        return self.budget is not None or self.error is not None

    def check(self, type: str, rank: object, alpha: object, grow: bool) -> None:
        """Refuse settings beside which nothing is to be chosen, or too little is given.

        Raises:
            ConversionError: says which.
        """
        if not self:
            if type == "lowrank" and rank is None:
                raise ConversionError("lowrank needs a rank, as rank=64, or a budget for all ranks, as budget=0.5")
            return
        if type == "sparse" or (type == "rank" and rank is not None):
            raise ConversionError("budget and error choose alpha for full rank, or the ranks of lowrank, nothing else")
        chosen, given = ("alpha", alpha) if type == "rank" else ("rank", rank)
        if given is not None:
            raise ConversionError(f"budget and error choose {chosen}: leave it out")
        if grow:
            raise ConversionError("budget and error leave layers alone that would not get smaller: leave grow out")


@dataclass(frozen=True)
class Allocation:
    """What was chosen; empty where nothing was to be chosen."""

    variants: dict[str, Variant | None] = field(default_factory=dict)  # of each layer; None for one that stays plain
    expected: dict[str, float] = field(default_factory=dict)  # relative error of the network's output by each layer
    together: float | None = None  # the same by all layers
    curve: list[tuple[float, float]] = field(default_factory=list)  # (size, expected error) of the best choices


def allocate(
    model: nn.Module,
    layers: dict[str, nn.Conv2d],
    variants: dict[str, Variant],
    stats: CalibrationStats,
    aim: CompressionTarget,
) -> Allocation:
    """Choose alpha, or the rank, of the layers of a model.

    Args:
        model: with plain convolutions.
        layers: {name: convolution} of those to choose for.
        variants: of these, with any value of what is to be chosen.
        stats: of calibration and example inputs.
        aim: the budget, or the error.

    Raises:
        ConversionError: for multiply-adds without inputs, or a budget that cannot be reached.
    """
    if aim.of == "macs" and stats.macs is None:
        raise ConversionError("of='macs' needs example_input or calibration: multiply-adds depend on the size of maps")
    spectra = {}
    for name, layer in layers.items():
        new = linearconv_like(layer, variants[name].conv, device="meta")
        if new.secondary_channels:
            root = root_of_layer(layer, stats.moments.get(name))
            is_low_rank = variants[name].type == "lowrank"
            spectra[name] = low_rank_spectrum(root, new.primary_channels) if is_low_rank else full_rank_spectrum(root)
    curves = dict.fromkeys(spectra, LossCurve())
    if stats.call is not None:
        curves = measure_losses(model, layers, spectra, stats.moments, stats.call)

    def size_of(name, setting):
        layer = layers[name]
        new = linearconv_like(layer, replace(variants[name], **setting).conv, device="meta") if setting else layer
        return count_parameters(new) if aim.of == "parameters" else count_macs(new, stats.positions.get(name, 0))

    whole = count_parameters(model) if aim.of == "parameters" else stats.macs
    chosen, curve = plan(spectra, curves, size_of, whole, aim.budget, aim.error)
    settings = {name: option.setting for name, option in chosen.items()}
    return Allocation(
        {name: replace(variants[name], **setting) if setting else None for name, setting in settings.items()},
        {name: expected_error(option.loss) for name, option in chosen.items()},
        expected_error(sum(option.loss for option in chosen.values())),
        curve,
    )
