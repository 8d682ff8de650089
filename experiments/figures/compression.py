"""The figure of a compression study: accuracy lost against dense over the size, at once and after training."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from experiments.compress.table import losses
from experiments.figures.style import WIDTH, dense_line, look
from experiments.results import NoResults, read_runs


def draw(results: Path, name: str = "compression_base") -> Figure:
    """Return the figure of `<results>/<name>.json`."""
    found, accuracy = losses(read_runs(results / f"{name}.json")["runs"])
    if not found:
        raise NoResults(f"{name}.json has no dense network beside a smaller one")
    figure = Figure((WIDTH, 9))
    panels = {"at once": figure.add_subplot(2, 1, 1), "after training": figure.add_subplot(2, 1, 2)}
    for way, sizes in found.items():
        style = look(way)
        if "scratch" in way:
            style["linestyle"], style["markerfacecolor"] = ":", "white"
        places = sorted(sizes)
        means = [statistics.fmean(sizes[size]) for size in places]
        axes = panels["at once" if way.endswith("at once") else "after training"]
        axes.plot([100 * size for size in places], means, label=way.removesuffix(", at once"), **style)
    for title, axes in panels.items():
        dense_line(axes, 0)
        axes.set_yscale("symlog", linthresh=1)
        axes.invert_yaxis()
        axes.set(xlabel="parameters, % of dense", ylabel="points lost against dense")
        axes.set_title(f"{name}, {title}; dense: {accuracy:.2f} %", loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
