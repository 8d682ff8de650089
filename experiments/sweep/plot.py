"""The plot of a sweep: accuracy against parameters and operations, with a row of plots for each group of runs.

Each type of layer, with its alpha and varied options, has its own marker and colour. Points are labelled by rank or
sparsity, and error bars are the standard deviation over seeds. A dashed line is the dense network's accuracy.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.figures.style import DASHED, INK, LOOKS, Look, fill, label, look, make, save, styled
from experiments.sweep.table import COUNTS, summarise

AXES = {
    "nonzero_parameters": "parameters that are not pruned",
    "flops_paper": COUNTS["flops_paper"],
    "macs_inference": COUNTS["macs_inference"],
}
METHODS = {"dense": "Conv", "rank": "-Lr", "lowrank": "-LRr", "basis": "filter basis", "ghost": "Ghost", "svd": "SVD"}
WIDTH, HEIGHT = 14, 4.2  # inches, for each row


def plot(runs: Sequence[dict], path: Path) -> None:
    """Draw the runs of a result file to a PNG file."""
    panels = {}
    for row in summarise(runs):
        title = f"{row['network']}, {row['dataset']}, {row['recipe']} recipe, {row['epochs']} epochs"
        panels.setdefault(title, []).append(row)
    with styled():
        figure, labels = make(HEIGHT * len(panels), WIDTH), []
        grid = figure.subplots(len(panels), len(AXES) + 1, squeeze=False, width_ratios=[1] * len(AXES) + [0.5])
        for (*plots, beside), (title, rows) in zip(grid, panels.items(), strict=True):
            series = _series(rows)
            for axes, (key, name) in zip(plots, AXES.items(), strict=True):
                labels.append((axes, _draw(axes, series, key)))
                axes.set(xlabel=name, ylabel="test accuracy, %")
            plots[0].set_title(title, loc="left", fontweight="bold")
            beside.axis("off")
            beside.legend(*plots[0].get_legend_handles_labels(), loc="center left")
        for axes, texts in labels:  # last, when the layout is final
            label(axes, *texts)
        save(figure, path.with_suffix(""), ["png"])


def _series(rows: Sequence[dict]) -> list[tuple[str, Look, list[dict]]]:
    """Return series of rows that differ only by rank or sparsity, each with its legend name and its look."""
    found = {}
    for row in rows:
        parts = [row["type"]]
        if row["alpha"] != 0.5 and row["type"] != "dense":
            parts.append(f"alpha {row['alpha']:g}")
        if row["varied"]:
            parts.append(row["varied"].replace(" --", ", ").removeprefix("--"))
        found.setdefault(", ".join(parts), []).append(row)
    free, series = [], []
    for name, same in found.items():
        free = free or list(LOOKS.values())
        usual = look(METHODS.get(same[0]["type"], same[0]["type"]))
        chosen = usual if usual in free else free[0]
        free.remove(chosen)
        series.append((name, chosen, same))
    return series


def _draw(axes: Axes, series, key: str) -> tuple[list[tuple[float, float]], list[str], list[str]]:
    """Draw the accuracies of all series over a count; return the labels: points, texts and colours."""
    points, texts, colors, heights, every = [], [], [], [], []
    for name, style, rows in series:
        rows = sorted(rows, key=lambda row: row[key])
        counts = [row[key] for row in rows]
        means = [row["accuracy"][0] for row in rows]
        deviations = [row["accuracy"][1] or 0 for row in rows]
        axes.errorbar(counts, means, deviations, label=name, capsize=3, **style.line() | style.dot())
        every += counts
        for row, count, mean, deviation in zip(rows, counts, means, deviations, strict=True):
            heights += [mean - deviation, mean + deviation]
            value = row["sparsity"] if row["type"] == "sparse" else row["rank"]
            if value is not None:
                points.append((count, mean))
                texts.append(f"{value:g}")
                colors.append(style.color)
    fill(axes, heights)
    if max(every) > 10 * min(every):
        axes.set_xscale("log")
        axes.set_xlim(min(every) / 1.3, max(every) * 1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        fill(axes, every, "x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter())
    dense = [rows[0]["accuracy"][0] for name, _, rows in series if name == "dense"]
    axes.hlines(dense, *axes.get_xlim(), linestyle=DASHED, linewidth=1, color=INK, zorder=0.5)
    return points, texts, colors
