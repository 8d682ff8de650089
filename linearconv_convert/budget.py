"""Primary filters shared out over the layers, so that a network of a given size loses least.

    minimise  sum_l d_l(P_l)    such that    sum_l size_l(P_l) <= budget

with d_l what the network loses by layer l (effects.py) at the error that P_l filters leave (spectrum.py). The least sum
lies on the lower convex hulls of the layers' points (size, d): their edges are taken in the order of what they gain for
their size, until the budget is spent. The plain convolution is one of the points, so that layers in which nothing is
won stay as they are. For `lowrank`, ranks are shared out in the same way.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from linearconv_convert.effects import Effect, expected_error
from linearconv_convert.spectrum import Spectrum
from linearconv_convert.surgery import ConversionError


@dataclass(frozen=True)
class Option:
    """What one layer may become."""

    setting: dict[str, float]  # alpha or rank; empty for the plain convolution
    size: int  # parameters or multiply-adds
    loss: float = 0.0  # d


def plan(
    spectra: dict[str, Spectrum],
    effects: dict[str, Effect],
    size_of: Callable[[str, dict[str, float]], int],
    whole: int,
    budget: float | None = None,
    error: float | None = None,
) -> tuple[dict[str, Option], list[tuple[float, float]]]:
    """Choose the number of primary filters, or the rank, of each layer.

    Args:
        spectra, effects: of all layers to choose for, by name.
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
            return Option(setting, size_of(name, setting), effects[name].at(spectrum.errors[value].item()))

        plain = chosen[name] = Option({}, size_of(name, {}))
        options[name] = [plain, *(each for each in map(option, spectrum.values()) if each.size < plain.size)]
        if error is not None and spectrum.errors[fewest := spectrum.fewest(error)] <= error:
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
