"""The figure of accuracy against parameters: every method of a sweep, and the line of thinner dense networks.

Dots are means over seeds, and bars are standard deviations. Pruned parameters do not count. The plot of a sweep has
further columns: FLOPs by the paper's convention, and multiply-adds at inference.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.figures.style import look
from experiments.results import NoResults, comparable, describe, every_run, mean_over_seeds
from experiments.sweep.table import COUNTS

FILES = ("table1_base_fast", "vgg11_fast")
IN_SWEEPS = ("nonzero_parameters", "flops_paper", "macs_inference")


def draw(results: Path, name: str | None = None) -> Figure:
    """Return the figure of `<results>/<name>.json` or of `FILES`: the comparable runs with the most methods."""
    largest = {}
    for file in [name] if name else FILES:
        groups = comparable(every_run(results, file)).items()
        groups = [(conditions, methods) for conditions, methods in groups if {"Conv"} < methods.keys()]
        largest |= [max(groups, key=lambda group: len(group[1]))] if groups else []
    if not largest:
        raise NoResults(f"there is no dense network beside other methods in {name or ' or '.join(FILES)}")
    return figure_of(largest, IN_SWEEPS[:1])


def figure_of(groups: dict[tuple, dict[str, list[dict]]], counts: Sequence[str] = IN_SWEEPS) -> Figure:
    """Return a figure with a row for each group of :func:`experiments.results.comparable`, a column for each count."""
    figure = Figure((5 + 4.4 * len(counts), 4.2 * len(groups)))
    grid = figure.subplots(len(groups), len(counts), squeeze=False)
    for plots, (conditions, methods) in zip(grid, groups.items(), strict=True):
        for axes, count in zip(plots, counts, strict=True):
            _draw(axes, methods, count)
            axes.set(xlabel=COUNTS[count].replace("of them", "parameters"), ylabel="test accuracy, %")
        plots[0].set_title(describe(conditions, map(len, methods.values())), loc="left")
        plots[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw(axes: Axes, methods: dict[str, list[dict]], count: str) -> None:
    sizes = {method: mean_over_seeds(runs, count)[0] for method, runs in methods.items()}
    dense = {sizes[method]: mean_over_seeds(methods[method])[0] for method in methods if method.startswith("Conv")}
    thin = sorted(dense)
    axes.plot(thin, [dense[size] for size in thin], color=look("Conv")["color"], linewidth=1.2)
    seen = []
    for number, (method, runs) in enumerate(methods.items()):
        style = look(method)
        seen.append(style["color"])
        if seen.count(style["color"]) > 1:  # another rank or option of a method
            style["color"] = f"C{number % 10}"
        mean, deviation = mean_over_seeds(runs)
        name = "Conv (dense)" if method == "Conv" else method.replace("Conv, width", "thinner: width")
        axes.errorbar(sizes[method], mean, deviation or 0, label=name, capsize=3, **style | {"linestyle": "none"})
    if max(sizes.values()) > 5 * min(sizes.values()):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter(EngFormatter())
