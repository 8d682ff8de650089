"""The figure of accuracy against parameters: every method of a sweep, and the line of thinner dense networks.

Dots are means over seeds, and bars are standard deviations. Pruned parameters do not count. Dotted lines are the dense
network converted to LinearConv, at once and tuned with the dense network as teacher (experiments.compress). The plot of
a sweep has further columns: FLOPs by the paper's convention, and multiply-adds at inference.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.compress.table import name_of_way
from experiments.figures.style import look
from experiments.results import NoResults, comparable, describe, every_run, mean_over_seeds, read_runs
from experiments.sweep.table import COUNTS

STUDIES = {"table1_base_fast": "compression_base", "vgg11_fast": "compression_vgg11"}  # sweeps, and conversions
IN_SWEEPS = ("nonzero_parameters", "flops_paper", "macs_inference")


def draw(results: Path, name: str | None = None) -> Figure:
    """Return the figure of `<results>/<name>.json` or of `STUDIES`: the comparable runs with the most methods."""
    largest, curves = {}, []
    for file in [name] if name else STUDIES:
        groups = comparable(every_run(results, file)).items()
        groups = [(conditions, methods) for conditions, methods in groups if {"Conv"} < methods.keys()]
        if groups:
            largest |= [max(groups, key=lambda group: len(group[1]))]
            curves.append(converted(results / f"{STUDIES.get(file)}.json"))
    if not largest:
        raise NoResults(f"there is no dense network beside other methods in {name or ' or '.join(STUDIES)}")
    figure = figure_of(largest, IN_SWEEPS[:1])
    for axes, lines in zip(figure.axes, curves, strict=True):
        bottom, top = axes.get_ylim()
        for title, points in lines.items():
            places, accuracies = zip(*sorted(points), strict=True)
            axes.plot(places, accuracies, linestyle=":", marker=".", label=title)
            top = max(top, max(accuracies) + 0.1)
        axes.set_ylim(bottom, top)  # the smallest networks are far below
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def converted(study: Path) -> dict[str, list[tuple[float, float]]]:
    """Return {name of the way: means (parameters, accuracy) over seeds} of the conversions to LinearConv in a study."""
    groups = {}
    for run in read_runs(study)["runs"] if study.exists() else ():
        report = run["report"]
        if report.get("way") == "linearconv" and (report["teacher"] or not report["epochs"]):
            groups.setdefault((name_of_way(report), report["budget"]), []).append(run)
    curves = {}
    for (way, _), runs in groups.items():
        point = mean_over_seeds(runs, "parameters")[0], mean_over_seeds(runs)[0]
        curves.setdefault(way, []).append(point)
    return curves


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
