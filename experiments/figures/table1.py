"""The figure of Table 1: accuracy, parameters and FLOPs of Conv, -L, -Lr and -LRr, a row per network.

    python -m experiments.figures table1

Each network shows its longest runs with the same data, recipe and epochs. -L has the counts of -Lr.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator

from experiments import paper
from experiments.figures.style import FAINT, INK, SMALL, fill, look, make
from experiments.results import NoResults, by_method, comparable, describe, every_run, load, mean_over_seeds

METHODS = ("Conv", "-L", "-Lr", "-LRr")
COUNTED_AS = {"Conv": "", "-L": "-Lr", "-Lr": "-Lr", "-LRr": "-LRr"}  # rows of table1_counts.json


def draw(results: Path) -> Figure:
    """Return the figure of all networks that have been trained dense and as LinearConv.

    Raises:
        NoResults: if there is no such network, or the counts do not exist.
    """
    counts = {row["network"]: row for row in load("table1_counts", results)["rows"]}
    runs = (run for run in every_run(results) if not run["file"].startswith("ablation"))
    groups = {conditions: by_method(same) for conditions, same in comparable(runs).items()}
    shown = {}
    for name, network in paper.NETWORKS.items():
        found = [item for item in groups.items() if item[0][0] == network.__name__ and _compares(item[1])]
        if found:
            shown[name] = max(found, key=_preference)
    if not shown:
        raise NoResults("no network has been trained dense and as LinearConv alike")
    figure = make(0.65 + 2.75 * len(shown))
    *rows, below = figure.subfigures(len(shown) + 1, 1, height_ratios=[2.75] * len(shown) + [0.65])
    for row, (name, (conditions, runs)) in zip(rows, shown.items(), strict=True):
        ours = {method: runs[method] for method in METHODS if method in runs}
        row.suptitle(
            describe((name, *conditions[1:]), ours.values()), x=0.01, ha="left", fontsize=10.5, fontweight="bold"
        )
        accuracy, parameters, flops = row.subplots(1, 3, width_ratios=(4, 3, 5))
        _accuracy(accuracy, ours, paper.accuracies(name, conditions[1]))
        here = {method: counts[name + COUNTED_AS[method]] for method in METHODS}
        _parameters(parameters, here)
        _flops(flops, here)
        for axes in (accuracy, parameters, flops):
            axes.set_xticks(range(len(METHODS)), METHODS)
            axes.set_xlim(-0.6, len(METHODS) - 0.4)
            axes.grid(visible=False, axis="x")
    _legend(below)
    return figure


def _compares(runs):
    return "Conv" in runs and len(set(METHODS) & set(runs)) > 1


def _preference(found):
    (_, dataset, _, epochs), runs = found
    return dataset == "cifar10", epochs, len(set(METHODS) & set(runs))


def _accuracy(axes: Axes, runs: dict[str, list[dict]], printed: dict[str, float]) -> None:
    """Draw our accuracies as filled dots with the best epoch as a dash, and the paper's as hollow dots."""
    values = []
    for place, method in enumerate(METHODS):
        style = look(method)
        if method in runs:
            mean, deviation = mean_over_seeds(runs[method])
            best, _ = mean_over_seeds(runs[method], "best_test_accuracy")
            bar = {"ecolor": style.color, "capsize": 3}
            axes.errorbar(place - 0.15, mean, yerr=deviation or 0, **style.dot(), **bar)
            axes.plot(place - 0.15, best, "_", color=style.color, markersize=13, markeredgewidth=1.5)
            place_of_text = (place - 0.15, mean - (deviation or 0))
            axes.annotate(f"{mean:.2f}", place_of_text, (-6, -7), **_centred("top"))
            values += [mean - (deviation or 0), mean + (deviation or 0), best]
        if method in printed:
            hollow = style.dot() | {"markerfacecolor": "white", "markeredgewidth": 1.4}
            axes.plot(place + 0.2, printed[method], linestyle="none", **hollow)
            values.append(printed[method])
    fill(axes, values, margin=0.16)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.08 * (high - low), high)  # the numbers are below the dots
    axes.set_title("test accuracy, %", loc="left", color=INK)


def _parameters(axes: Axes, counts: dict[str, dict]) -> None:
    """Draw parameters as bars in per cent of the dense network's parameters, with the number above."""
    dense = counts["Conv"]["parameters"]
    for place, method in enumerate(METHODS):
        number = counts[method]["parameters"]
        axes.bar(place, 100 * number / dense, 0.7, color=look(method).color)
        axes.annotate(f"{number / 1e6:.2f} M", (place, 100 * number / dense), (0, 2), **_centred("bottom"))
    axes.set_title("parameters, % of dense", loc="left", color=INK)
    axes.margins(y=0.12)


def _flops(axes: Axes, counts: dict[str, dict]) -> None:
    """Draw both counts of operations as bars that begin at the dense network's count."""
    ratios = [1.0]
    for place, method in enumerate(METHODS):
        for key, shift, how in (("flops_paper", -0.2, {}), ("macs_inference", 0.2, {"hatch": "////", "fill": False})):
            ratio = counts[method][key] / counts["Conv"][key]
            color = look(method).color
            axes.bar(place + shift, ratio - 1, 0.38, bottom=1, color=color, edgecolor=color, linewidth=1, **how)
            above = ratio >= 1
            text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"
            place_of_text = (place + shift, ratio)
            axes.annotate(text, place_of_text, (0, 2 if above else -2), **_centred("bottom" if above else "top"))
            ratios.append(ratio)
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_yscale("log")
    span = max(ratios) / min(ratios)
    axes.set_ylim(min(ratios) / span**0.16, max(ratios) * span**0.16)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if min(ratios) / 1.1 < tick < max(ratios) * 1.1]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("operations, dense = 1", loc="left", color=INK)


def _centred(vertically):
    return {"textcoords": "offset points", "ha": "center", "va": vertically, "fontsize": SMALL}


def _legend(below) -> None:
    """Add a legend for dots and bars."""
    dot = {"linestyle": "none", "color": INK, "markersize": 7}
    signs = [
        Line2D([], [], marker="o", label="here, after the last epoch", **dot),
        Patch(color=FAINT, label="FLOPs by the paper's count: filters made in every pass"),
        Line2D([], [], marker="_", markeredgewidth=1.5, label="here, best epoch (on the test images)", **dot),
        Patch(fill=False, edgecolor=INK, hatch="////", label="multiply-adds of an image as run here"),
        Line2D([], [], marker="o", markerfacecolor="white", label="the paper", **dot),
    ]
    below.legend(handles=signs[::2] + signs[1::2], loc="center", ncols=2)
