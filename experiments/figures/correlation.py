"""The figure of filter correlation: a column per run (Conv, -L, -Lr), a row per layer, the primary filters first."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.correlation import unpack
from experiments.figures.style import PRIMARY, SECONDARY, SMALL, WIDTH
from experiments.results import NoResults, read_json

COLORS = colormaps["RdBu_r"].resampled(41)  # steps of 0.05, which halve the file size
TITLES = {
    "dense": "Conv",
    "L": "-L: LinearConv,\nno regulariser",
    "Lr": "-Lr: LinearConv\nwith the regulariser",
}


def draw(results: Path) -> Figure:
    """Return the figure of `<results>/correlation_base.json`."""
    try:
        runs = read_json(results / "correlation_base.json", runs=list)["runs"]
    except NoResults as reason:
        raise NoResults(f"{reason}: python -m experiments.correlation makes it from checkpoints") from None
    rows, columns = len(runs[0]["layers"]), len(runs)
    figure = Figure((min(WIDTH, 1.9 + 2.5 * columns), 0.9 + 2.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for column, run in enumerate(runs):
        panels[0, column].set_title(TITLES.get(run["name"], run["name"]))
        for axes, layer in zip(panels[:, column], run["layers"], strict=True):
            image = _panel(axes, layer)
    for axes, layer in zip(panels[:, 0], runs[0]["layers"], strict=True):
        title = "layer {layer}\n{filters} filters\nof {elements}\nelements".format(**layer)
        axes.set_ylabel(title, rotation=0, ha="right", va="center", multialignment="center", labelpad=6)
    bar = figure.colorbar(image, ax=panels, shrink=0.5, aspect=24, pad=0.03, ticks=[-1, -0.5, 0, 0.5, 1])
    figure.get_layout_engine().set(rect=(0.015, 0, 0.985, 1))  # vertical labels exceed their reserved space
    bar.set_label("Pearson correlation of two filters")
    return figure


def _panel(axes: Axes, layer: dict) -> object:
    """Draw a matrix with its blocks outlined, and write their mean absolute correlations below."""
    filters, primary, means = layer["filters"], layer["primary"], layer["mean_absolute"]
    image = axes.imshow(unpack(layer["hundredths"]), cmap=COLORS, vmin=-1, vmax=1, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    text = f"mean |C|: {means['all']:.2f}"
    if primary:
        for start, size, color in ((0, primary, PRIMARY), (primary, filters - primary, SECONDARY)):
            corner = (start - 0.5, start - 0.5)
            axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=2, clip_on=False))
        text = f"mean |C|: {means['primary']:.2f} primary (blue),\n{means['secondary']:.2f} secondary (orange)"
    axes.set_xlabel(text, fontsize=SMALL, labelpad=5)
    return image
