"""The figure of Table 1: accuracy, parameters and FLOPs of Conv, -L, -Lr and -LRr, a row per network.

Each network shows its longest runs with the same data, recipe and epochs. The paper's accuracies (hollow dots) are
beside runs with the paper's recipe only: they do not compare with short trainings. -L has the counts of -Lr.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import paper
from experiments.figures.style import INK, SMALL, WIDTH, look
from experiments.results import NoResults, comparable, describe, every_run, mean_over_seeds, read_json

METHODS = {"Conv": "", "-L": "-Lr", "-Lr": "-Lr", "-LRr": "-LRr"}  # with their rows of table1_counts.json
COUNTS = {
    "parameters": "parameters, dense = 1",
    "flops_paper": "FLOPs by the paper, dense = 1",
    "macs_inference": "multiply-adds, dense = 1",
}


def draw(results: Path) -> Figure:
    """Return the figure of all networks that have been trained dense and as LinearConv."""
    counts = {row["network"]: row for row in read_json(results / "table1_counts.json", rows=list)["rows"]}
    groups = comparable(run for run in every_run(results) if not run["file"].startswith("ablation"))
    shown = {}  # conditions and runs by network
    for name, network in paper.NETWORKS.items():
        best = ()  # the group on CIFAR-10, with most epochs, with most methods
        for conditions, runs in groups.items():
            architecture, dataset, _, epochs = conditions
            methods = {method: same for method, same in runs.items() if method in METHODS}
            preference = dataset == "cifar10", epochs, len(methods)
            if architecture == network.__name__ and {"Conv"} < methods.keys() and preference > best:
                best, shown[name] = preference, (conditions, methods)
    if not shown:
        raise NoResults("no network has been trained dense and as LinearConv alike")
    figure = Figure((WIDTH, 2.6 * len(shown)))
    rows = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    for row, (name, (conditions, runs)) in zip(rows, shown.items(), strict=True):
        title = describe((name, *conditions[1:]), map(len, runs.values()))
        row.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        accuracy, *others = row.subplots(1, 4, width_ratios=(4, 3, 3, 3))
        _accuracy(accuracy, runs, paper.accuracies(name, conditions[1]) if conditions[2] == "paper" else {})
        for axes, (key, count) in zip(others, COUNTS.items(), strict=True):
            numbers = [counts[name + suffix][key] for suffix in METHODS.values()]
            colors = [look(method)["color"] for method in METHODS]
            bars = axes.bar(list(METHODS), [number / numbers[0] for number in numbers], color=colors)
            axes.bar_label(bars, fmt="{:.3g}", fontsize=SMALL)
            axes.axhline(1, color=INK, linewidth=0.8)
            axes.margins(y=0.12)
            axes.set_title(count, loc="left", fontsize=SMALL)
    return figure


def _accuracy(axes: Axes, runs: dict[str, list[dict]], printed: dict[str, float]) -> None:
    """Draw our accuracies as filled dots with the best epoch as a dash, and the paper's as hollow dots."""
    for place, method in enumerate(METHODS):
        style = look(method)
        if method in runs:
            mean, deviation = mean_over_seeds(runs[method])
            axes.errorbar(place - 0.15, mean, deviation or 0, capsize=3, **style)
            axes.plot(place - 0.15, mean_over_seeds(runs[method], "best_test_accuracy")[0], "_", color=style["color"])
            below = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": SMALL}
            axes.annotate(f"{mean:.2f}", (place - 0.15, mean - (deviation or 0)), (-6, -7), **below)
        if method in printed:
            axes.plot(place + 0.2, printed[method], markerfacecolor="white", **style)
    axes.set_xticks(range(len(METHODS)), METHODS)
    axes.margins(0.25)
    axes.set_title("test accuracy, %", loc="left", fontsize=SMALL)
