"""Style of all figures: width, fonts, the look of every method, and file formats.

README shows a figure 900 pixels wide; at this width no letter is smaller than 9 points. Methods differ in marker and
line as well as in colour. The colours of the paper's four methods also differ in brightness, for prints in grey.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from linearconv_convert.exporting import atomic_file

WIDTH = 9.4  # inches: 900 pixels at 96 to the inch
SMALL = 9  # points
PRIMARY, SECONDARY = "#1b5faa", "#c75f00"  # learned filters and their maps, and combined ones
INK = "#1a1a1a"
FORMATS = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 144}}
RC = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.25,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "mathtext.fontset": "cm",
    "svg.hashsalt": "linearconv",
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
}
LOOKS = {  # colour, marker, line; by the beginning of the method's name; the longest match applies
    "Conv": (INK, "o", "-"),
    "-L": ("#b8458b", "^", (0, (4, 1.5))),
    "-Lr": (PRIMARY, "s", "-"),
    "-LRr": ("#e08a00", "D", (0, (6, 1.5, 1.5, 1.5))),
    "rank": ("#6d9bd1", "p", (0, (2, 1))),
    "sparse": ("#2f7d4f", "v", (0, (1, 1))),
    "octave": ("#7a5195", "h", "-"),
    "filter basis": ("#8c6d31", "P", "-"),
    "Ghost": ("#5f9ea0", "X", "-"),
    "SVD": ("#a63d40", "<", "-"),
    "LinearConv": (PRIMARY, "s", "-"),  # ways of the compression study, from here on
    "Tucker": ("#7a5195", "h", "-"),
    "spatial": ("#8c6d31", "P", "-"),
    "channel": ("#6d9bd1", "p", (0, (2, 1))),
    "thinner": (INK, "o", "-"),
    "": ("#8a8a8a", "d", "-"),
}

matplotlib.rcdefaults()  # ignore this machine's matplotlibrc
matplotlib.rcParams.update(RC)


def look(method: str) -> dict[str, object]:
    """Return colour, marker and line of a method, named as by :func:`experiments.results.method`, for `Axes.plot`."""
    start = max((start for start in LOOKS if method.startswith(start)), key=len)
    return dict(zip(("color", "marker", "linestyle"), LOOKS[start], strict=True))


def save(figure: Figure, path: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write a figure to `path` with each format's suffix; return the paths."""
    paths = [path.with_suffix(f".{name}") for name in formats]
    for name, target in zip(formats, paths, strict=True):
        with atomic_file(target) as part:
            figure.savefig(part, format=name, **FORMATS[name])
    return paths


def dense_line(axes: Axes, accuracy: float, **arguments: object) -> None:
    """Draw the dense network's accuracy as a dashed line."""
    axes.axhline(accuracy, color=INK, linestyle=(0, (6, 3)), linewidth=1, zorder=0.5, **arguments)
