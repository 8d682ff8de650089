"""The figure of a compression study: accuracy lost against dense over the size, at once and after training.

Tuned networks have the dense network as teacher; the table has those without a teacher too.
"""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.compress.table import AT_ONCE, FROM_SCRATCH, losses
from experiments.figures.style import WIDTH, dense_line, look
from experiments.results import NoResults, read_runs

TICKS = (-1, 0, 1, 2, 5, 10, 20, 50)  # points; the axis is linear up to 1 and logarithmic above


def draw(results: Path, name: str = "compression_base") -> Figure:
    """Return the figure of `<results>/<name>.json`, with a panel for networks at once and one for trained networks."""
    found, accuracy = losses(read_runs(results / f"{name}.json")["runs"])
    if not found:
        raise NoResults(f"{name}.json has no dense network beside a smaller one")
    at_once = {way.removesuffix(f", {AT_ONCE}"): sizes for way, sizes in found.items() if AT_ONCE in way}
    shown = [way for way in found if FROM_SCRATCH in way or way.endswith("teacher") or way.startswith("dense, ")]
    trained = {way: found[way] for way in shown if AT_ONCE not in way}
    panels = {title: ways for title, ways in ((AT_ONCE, at_once), ("after training", trained)) if ways}
    figure = Figure((WIDTH, 4.5 * len(panels)))
    grid = figure.subplots(len(panels), squeeze=False)
    for (axes,), (title, ways) in zip(grid, panels.items(), strict=True):
        _draw(axes, ways)
        axes.set_title(f"{name}, {title}; dense: {accuracy:.2f} %", loc="left")
    return figure


def _draw(axes: Axes, ways: dict[str, dict[float, list[float]]]) -> None:
    seen = set()
    for way, sizes in ways.items():
        style, name = look(way), way.partition(",")[0]
        if FROM_SCRATCH in way:
            style["linestyle"] = ":"
        if FROM_SCRATCH in way or name in seen:  # the same way with more epochs
            style["markerfacecolor"] = "white"
        seen.add(name)
        places = sorted(sizes)
        means = [statistics.fmean(sizes[size]) for size in places]
        axes.plot([100 * size for size in places], means, label=way, **style)
    dense_line(axes, 0)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks(TICKS, map(str, TICKS))
    lost = [points for sizes in ways.values() for values in sizes.values() for points in values]
    axes.set_ylim(max(lost) + 1, min(*lost, 0) - 0.2)  # the best is at the top
    axes.set(xlabel="parameters, % of dense", ylabel="points lost against dense")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
