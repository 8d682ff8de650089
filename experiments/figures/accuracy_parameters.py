"""The figure of accuracy against parameters: every method of a sweep, and the line of thinner dense networks.

    python -m experiments.figures accuracy_parameters                          # Base and VGG11
    python -m experiments.figures accuracy_parameters --results base_cifar10

Dots are means over seeds, and bars are standard deviations. Pruned parameters do not count.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.figures.style import INK, fill, label, look, make
from experiments.results import NoResults, by_method, comparable, describe, every_run, mean_over_seeds

PREFERRED = ("table1_base_fast", "vgg11_fast")
FEWEST = 4  # methods in a panel


def draw(results: Path, name: str | None = None) -> Figure:
    """Return the figure of the comparable runs in `<results>/<name>.json`: the group with the most methods.

    Args:
        results: folder of the results.
        name: name of the result; default: a panel for each available result of `PREFERRED`, else the result with the
            most methods.

    Raises:
        NoResults: if no result has enough methods.
    """
    by_file = {}
    for run in every_run(results, name or "*"):
        by_file.setdefault(run["file"], []).append(run)
    preferred = [] if name else [[by_file[file]] for file in PREFERRED if file in by_file]
    panels = [_fullest(files) for files in preferred or [list(by_file.values())]]
    if None in panels:
        raise NoResults(f"there are not {FEWEST} methods of several sizes that compare in {name or 'any result'}")
    figure = make(5.2 * len(panels))
    for axes, (conditions, runs) in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        _panel(axes, {method: _point(same) for method, same in runs.items()})
        axes.set_title(describe(conditions, runs.values()), loc="left", color=INK)
    return figure


def _fullest(files):
    """Return conditions and runs by method of the group with the most methods; None if no group has enough."""
    groups = [(conditions, by_method(same)) for file in files for conditions, same in comparable(file).items()]
    groups = [group for group in groups if len(group[1]) >= FEWEST and len(set(map(_size, group[1].values()))) > 2]
    return max(groups, key=lambda group: (len(group[1]), group[0][-1]), default=None)


def _panel(axes: Axes, points: dict[str, tuple[float, float, float]]) -> None:
    thin = sorted(point[:2] for method, point in points.items() if method.startswith("Conv"))
    if len(thin) > 1:
        axes.plot(*zip(*thin, strict=True), linewidth=1.2, **look("Conv").line())
    for method, (parameters, accuracy, deviation) in points.items():
        style, bar = look(method), {"capsize": 3, "elinewidth": 1}
        under = {"zorder": 1.9, "markersize": 10} if method.startswith("Conv") else {}  # overlapping markers show
        axes.errorbar(parameters, accuracy, yerr=deviation, linestyle="none", **style.dot() | bar | under)
    ends = [accuracy + sign * deviation for _, accuracy, deviation in points.values() for sign in (-1, 1)]
    fill(axes, ends, "y", 0.1)
    counts = [parameters for parameters, *_ in points.values()]
    if max(counts) > 5 * min(counts):
        axes.set_xscale("log")
        axes.set_xlim(min(counts) / 1.25, max(counts) * 1.25)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        fill(axes, counts, "x", 0.14)
    million = max(counts) >= 2e6
    shown = FuncFormatter(lambda count, _: f"{count / 1e6:g} M" if million else f"{count / 1e3:g} k")
    axes.xaxis.set_major_formatter(shown)
    axes.set(xlabel="parameters", ylabel="test accuracy after the last epoch, %")
    names = [_name(method) for method in points]
    label(axes, [point[:2] for point in points.values()], names, [look(method).color for method in points])


def _size(runs: list[dict]) -> float:
    return mean_over_seeds(runs, "nonzero_parameters")[0]


def _point(runs: list[dict]) -> tuple[float, float, float]:
    """Return parameters, mean accuracy and standard deviation."""
    mean, deviation = mean_over_seeds(runs)
    return _size(runs), mean, deviation or 0.0


def _name(method: str) -> str:
    """Return the figure's name of a method."""
    return {"Conv": "Conv (dense)"}.get(method, method.replace("Conv, width", "thinner: width"))
