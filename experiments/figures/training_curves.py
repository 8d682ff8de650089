"""The figure of the long trainings: test accuracy by epoch with the paper's recipe, and its difference to dense.

    python -m experiments.figures training_curves

Thin lines are single epochs, and thick lines the mean of the last ten. A dashed line is the dense network's final mean.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import dense_line, look, make
from experiments.results import NoResults, by_method, comparable, describe, every_run

NAMES = {"Conv": "Conv (dense)", "-L": "-L, no regulariser", "-Lr": "-Lr, full rank", "-LRr": "-LRr, rank 10"}
WINDOW = 10  # epochs
FROM = 20  # first epoch that the axis limits consider


def draw(results: Path, name: str = "base_paper_cifar10") -> Figure:
    """Return the figure of the longest comparable runs in `<results>/<name>.json`."""
    groups = {conditions: by_method(runs) for conditions, runs in comparable(every_run(results, name)).items()}
    groups = {conditions: runs for conditions, runs in groups.items() if "Conv" in runs and len(runs) > 1}
    if not groups:
        raise NoResults(f"{name}.json has no dense run beside others")
    conditions = max(groups, key=lambda key: key[-1])
    epochs, runs = conditions[-1], groups[conditions]
    curves = {method: _accuracies(same) for method, same in runs.items()}
    means = {method: np.convolve(curve, np.full(WINDOW, 1 / WINDOW), "valid") for method, curve in curves.items()}
    figure = make(6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
    for method in sorted(runs, key=lambda method: -means[method][-1]):
        style = look(method) | {"marker": None}
        places, mean = np.arange(1, epochs + 1), means[method]
        upper.plot(places, curves[method], color=style["color"], linewidth=0.5, alpha=0.45)
        label = f"{NAMES.get(method, method)}: {mean[-1]:.2f}"
        upper.plot(places[WINDOW - 1 :], mean, linewidth=2, label=label, **style)
        if method != "Conv":
            difference = mean - means["Conv"]
            label = f"{NAMES.get(method, method)}: {difference[-1]:+.2f}"
            lower.plot(places[WINDOW - 1 :], difference, linewidth=2, label=label, **style)
    shown = [mean[FROM - WINDOW :] for mean in means.values()]
    differences = [mean - means["Conv"][FROM - WINDOW :] for mean in shown]
    dense_line(upper, means["Conv"][-1])
    dense_line(lower, 0)
    upper.set_ylim(np.min(shown) - 0.3, max(curve.max() for curve in curves.values()) + 0.3)
    lower.set_ylim(np.min(differences) - 0.2, max(0.3, np.max(differences)) + 0.2)
    upper.set_title(f"{describe(conditions, runs.values())}; thick: mean of ten epochs", loc="left")
    upper.set_ylabel("test accuracy, %")
    lower.set(ylabel="difference to dense,\npoints", xlabel="epoch", xlim=(0, epochs))
    for axes in (upper, lower):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="last ten epochs", alignment="left")
    return figure


def _accuracies(runs: list[dict]) -> np.ndarray:
    """Return the test accuracy by epoch, averaged over seeds."""
    return np.mean([[record["test_accuracy"] for record in run["log"]] for run in runs], axis=0)
