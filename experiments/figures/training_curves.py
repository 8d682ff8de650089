"""The figure of the long trainings: test accuracy by epoch with the paper's recipe, and its difference to dense.

Thin lines are single epochs, and thick lines the mean of the last ten. A dashed line is the dense network's final mean.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, SubFigure

from experiments.figures.style import WIDTH, dense_line, look
from experiments.results import NoResults, comparable, describe, every_run

SWEEPS = ("base_paper_cifar10", "vgg11_paper_cifar10")  # from above; a missing one is left out
NAMES = {"Conv": "Conv (dense)", "-L": "-L, no regulariser", "-Lr": "-Lr, full rank", "-LRr": "-LRr, rank 10"}
WINDOW = 10  # epochs
FROM = 20  # first epoch that the axis limits consider


def draw(results: Path) -> Figure:
    """Return the figure of the longest comparable runs in each of `SWEEPS`."""
    found = [group for name in SWEEPS if (group := longest(results, name))]
    if not found:
        raise NoResults(f"no dense run beside others in {' or '.join(SWEEPS)}")
    figure = Figure((WIDTH, 6.2 * len(found)))
    for part, group in zip(figure.subfigures(len(found), 1, squeeze=False).flat, found, strict=True):
        draw_group(part, *group)
    return figure


def longest(results: Path, name: str) -> tuple[tuple, dict[str, list[dict]]] | None:
    """Return conditions and runs of a result's longest comparable runs with a dense one among them, if any."""
    groups = comparable(every_run(results, name)).items()
    groups = [(conditions, methods) for conditions, methods in groups if {"Conv"} < methods.keys()]
    return max(groups, key=lambda group: group[0][-1], default=None)


def draw_group(figure: SubFigure, conditions: tuple, runs: dict[str, list[dict]]) -> None:
    """Draw the accuracies of comparable runs, and below them the differences to the dense one."""
    epochs = conditions[-1]
    curves, means = {}, {}
    for method, same in runs.items():  # over seeds
        curves[method] = np.mean([[record["test_accuracy"] for record in run["log"]] for run in same], axis=0)
        means[method] = np.convolve(curves[method], np.full(WINDOW, 1 / WINDOW), "valid")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
    places = np.arange(1, epochs + 1)
    for method, mean in sorted(means.items(), key=lambda item: -item[1][-1]):
        style, name = look(method) | {"marker": None}, NAMES.get(method, method)
        upper.plot(places, curves[method], color=style["color"], linewidth=0.5, alpha=0.45)
        upper.plot(places[WINDOW - 1 :], mean, linewidth=2, label=f"{name}: {mean[-1]:.2f}", **style)
        if method != "Conv":
            difference = mean - means["Conv"]
            lower.plot(places[WINDOW - 1 :], difference, linewidth=2, label=f"{name}: {difference[-1]:+.2f}", **style)
    shown = [mean[FROM - WINDOW :] for mean in means.values()]
    differences = [mean - means["Conv"][FROM - WINDOW :] for mean in shown]
    dense_line(upper, means["Conv"][-1])
    dense_line(lower, 0)
    upper.set_ylim(np.min(shown) - 0.3, max(curve.max() for curve in curves.values()) + 0.3)
    lower.set_ylim(np.min(differences) - 0.2, max(0.3, np.max(differences)) + 0.2)
    upper.set_title(f"{describe(conditions, map(len, runs.values()))}; thick: mean of ten epochs", loc="left")
    upper.set_ylabel("test accuracy, %")
    lower.set(ylabel="difference to dense,\npoints", xlabel="epoch", xlim=(0, epochs))
    for axes in (upper, lower):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="last ten epochs", alignment="left")
