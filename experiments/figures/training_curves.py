"""The figure of the long trainings: test accuracy by epoch with the paper's recipe, and its difference to dense.

    python -m experiments.figures training_curves

Thin lines are single epochs, and thick lines the mean of the last ten. A dashed line is the dense network's final mean.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import DASHED, INK, SMALL, fill, look, make
from experiments.results import NoResults, by_method, comparable, describe, every_run

NAMES = {"Conv": "Conv (dense)", "-L": "-L, no regulariser", "-Lr": "-Lr, full rank", "-LRr": "-LRr, rank 10"}
WINDOW = 10  # epochs
FROM = 20  # first epoch that the axis limits consider


def draw(results: Path, name: str = "base_paper_cifar10") -> Figure:
    """Return the figure of the longest comparable runs in `<results>/<name>.json`.

    Raises:
        NoResults: if there is no dense run with comparable other runs.
    """
    groups = {conditions: by_method(runs) for conditions, runs in comparable(every_run(results, name)).items()}
    groups = {conditions: runs for conditions, runs in groups.items() if "Conv" in runs and len(runs) > 1}
    if not groups:
        raise NoResults(f"{name}.json has no dense run beside others")
    conditions = max(groups, key=lambda key: key[-1])
    epochs, runs = conditions[-1], groups[conditions]
    order = [method for method in NAMES if method in runs] + [method for method in runs if method not in NAMES]
    curves = {method: _accuracies(runs[method]) for method in order}
    figure = make(6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
    dense = _running_mean(curves["Conv"])
    places = np.arange(1, epochs + 1)
    tails = {upper: {}, lower: {}}
    for method, curve in curves.items():
        mean = tails[upper][method] = _running_mean(curve)
        upper.plot(places, curve, color=look(method).color, linewidth=0.5, alpha=0.45)
        upper.plot(places[WINDOW - 1 :], mean, linewidth=2, **look(method).line())
        if method != "Conv":
            tails[lower][method] = mean - dense
            lower.plot(places[WINDOW - 1 :], mean - dense, linewidth=2, **look(method).line())
    for axes, height in ((upper, dense[-1]), (lower, 0)):
        axes.axhline(height, color=INK, linewidth=1, linestyle=DASHED)
    highest = max(curve.max() for curve in curves.values())
    fill(upper, [min(mean[FROM - WINDOW] for mean in tails[upper].values()), highest], margin=0.04)
    fill(lower, [0.3, *np.concatenate([mean[FROM - WINDOW :] for mean in tails[lower].values()])])
    upper.set_title(f"{describe(conditions, runs.values())}; thick: mean of ten epochs", loc="left")
    upper.set_ylabel("test accuracy, %")
    lower.set(ylabel="difference to dense,\npoints", xlabel="epoch", xlim=(0, epochs))
    for axes, ends in tails.items():
        _name_at_the_end(axes, {method: mean[-1] for method, mean in ends.items()}, epochs, signed=axes is lower)
    return figure


def _accuracies(runs: list[dict]) -> np.ndarray:
    """Return the test accuracy by epoch, averaged over seeds."""
    return np.mean([[record["test_accuracy"] for record in run["log"]] for run in runs], axis=0)


def _running_mean(curve: np.ndarray) -> np.ndarray:
    """Return, for each epoch from the tenth, the mean of the last ten epochs."""
    return np.convolve(curve, np.full(WINDOW, 1 / WINDOW), "valid")


def _name_at_the_end(axes, ends: dict[str, float], epochs: int, signed: bool) -> None:
    """Write the method and its last value on the right of each line; overlapping texts are moved apart."""
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_figheight() * 72  # points
    step = 1.25 * SMALL * (high - low) / height
    below = high
    for method, value in sorted(ends.items(), key=lambda item: -item[1]):
        below = min(value, below - step) if below != high else value
        text = f"{NAMES.get(method, method)}: " + (f"{value:+.2f}" if signed else f"{value:.2f}")
        axes.annotate(
            text,
            (epochs, below),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=look(method).color,
            fontsize=SMALL,
            fontweight="bold",
            annotation_clip=False,
        )
