"""The figure of a compression study: the accuracy after each way to compress a trained network.

    python -m experiments.figures compression                       # from results/compress_base.json
    python -m experiments.compress --name compress_base --table     # table, and the same figure as results/NAME.png

Methods are sorted by size. Methods of about equal size form a band and are sorted by accuracy after fine-tuning.
"""

from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures.style import DASHED, INK, SMALL, Look, fill, look, make
from experiments.results import load

WAYS = {  # by the beginning of the name; LinearConv's look like the methods in other figures
    "full rank": look("-Lr"),
    "half rank": look("rank"),
    "rank 10": look("-LRr"),
    "half of A pruned": look("sparse"),
    "SVD": Look("#a63d40", "<", size=8),
    "Tucker": Look("#7a5195", "X", size=8.5),
    "uniform channel pruning": Look("#1a1a1a", "P", size=8.5),
}
NUMBER, ASIDE = {"fontsize": SMALL, "color": INK}, {"va": "center", "ha": "right"}
APART = 1.25  # size ratio of two neighbours above which they are in different bands


def draw(results: Path, name: str = "compress_base") -> Figure:
    """Return the figure of `<results>/<name>.json`.

    Raises:
        NoResults: if the result does not exist.
    """
    return figure_of(load(name, results))


def figure_of(record: dict) -> Figure:
    """Return the figure of a study: accuracy directly after conversion on the left, after fine-tuning on the right.

    Args:
        record: content of the result file.
    """
    scratch = {row["method"]: row for row in record["rows"] if row["kind"] == "from scratch"}
    bands = _bands([row for row in record["rows"] if row["kind"] != "from scratch"])
    rows = [row for band in bands for row in band]
    figure = make(1.5 + 0.31 * len(rows))
    converted, trained = figure.subplots(1, 2, sharey=True, width_ratios=(4, 5))
    dense = scratch["dense"]["accuracies"][-1]
    for place, row in enumerate(rows):
        style = _look(row["method"])
        as_converted, first, last = (row["accuracies"][epoch] for epoch in (0, 1, -1))
        converted.plot(as_converted, place, **style.dot())
        trained.plot([first, last], [place, place], color=style.color, linewidth=1)
        trained.plot(first, place, **style.dot(), markerfacecolor="white")
        trained.plot(last, place, **style.dot())
        on_the_left = dense - as_converted < 10  # the dashed line is on the right
        how = {"textcoords": "offset points", "va": "center", "ha": "right" if on_the_left else "left"}
        converted.annotate(f"{as_converted:.1f}", (as_converted, place), (-8 if on_the_left else 8, 0), **how | NUMBER)
        trained.text(1.07, place, f"{last:.1f}", transform=trained.get_yaxis_transform(), **ASIDE | NUMBER)
        if row["method"] in scratch:
            value = scratch[row["method"]]["accuracies"][-1]
            trained.plot(value, place, "*", color=INK, markersize=10, markeredgecolor="white", markeredgewidth=0.7)
    first_row = 0
    for number, band in enumerate(bands):
        for axes in (converted, trained) if number % 2 == 0 else ():
            axes.axhspan(first_row - 0.5, first_row + len(band) - 0.5, color="#f0f0f0", zorder=0)
        first_row += len(band)
    for axes in (converted, trained):
        axes.axvline(dense, color=INK, linestyle=DASHED, linewidth=1)
        axes.set(xlabel="test accuracy, %", ylim=(-0.6, len(rows) - 0.4))
        axes.grid(visible=False, axis="y")
    converted.set_yticks(range(len(rows)), [f"{row['method']} ({row['parameters'] / 1000:.0f} k)" for row in rows])
    converted.tick_params(axis="y", length=0)
    trained.tick_params(axis="y", length=0)
    fill(converted, [dense, *(row["accuracies"][0] for row in rows)], "x", 0.06)
    fill(trained, [dense, *(accuracy for row in rows for accuracy in row["accuracies"][1:])], "x", 0.06)
    converted.set_title("as converted", loc="left")
    trained.set_title("after fine-tuning", loc="left")
    trained.text(1.07, 1.02, f"after {record['finetune']}", transform=trained.transAxes, ha="right", **NUMBER)
    _legend(figure, record, scratch["dense"])
    return figure


def _bands(rows: list[dict]) -> list[list[dict]]:
    """Return bands of rows of about equal size, the smallest first; the most accurate row of a band is last, on top."""
    rows = sorted(rows, key=lambda row: row["parameters"])
    bands = [rows[:1]]
    for smaller, row in pairwise(rows):
        if row["parameters"] > APART * smaller["parameters"]:
            bands.append([])
        bands[-1].append(row)
    return [sorted(band, key=lambda row: row["accuracies"][-1]) for band in bands]


def _look(method: str) -> Look:
    return next((style for start, style in WAYS.items() if method.startswith(start)), look(""))


def _legend(figure: Figure, record: dict, dense: dict) -> None:
    """Add a legend for hollow dots, stars and the dashed line."""
    dot = {"linestyle": "none", "color": INK, "markersize": 7}
    signs = [
        Line2D([], [], marker="s", markerfacecolor="white", label="after 1 epoch", **dot),
        Line2D([], [], marker="s", label=f"after {record['finetune']}", **dot),
        Line2D([], [], marker="*", label=f"from scratch, {record['epochs']} epochs", **dot | {"markersize": 9}),
        Line2D(
            [],
            [],
            color=INK,
            linestyle=DASHED,
            linewidth=1,
            label=f"dense ({dense['parameters'] / 1000:.0f} k), {record['epochs']} epochs",
        ),
    ]
    figure.legend(handles=signs, loc="outside lower center", ncols=4)
