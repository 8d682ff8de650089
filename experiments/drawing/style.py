"""What all figures share: width, fonts, a look for every method, and how they are saved.

README shows a figure 900 pixels wide; at that width no letter is smaller than 9 points. Methods differ in marker and
line as well as in colour, and the colours of the paper's four in brightness, so that a grey print tells them apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.checkpoints import write_whole

WIDTH = 9.4  # inches: 900 pixels at 96 to the inch
SMALL = 9  # points
PRIMARY, SECONDARY = "#1b5faa", "#c75f00"  # filters and maps that are learnt, and those that are combined
INK, FAINT = "#1a1a1a", "#8a8a8a"
FORMATS = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 144}}
DASHED = (0, (6, 3))  # of the line that marks where the dense network is
SIGNED = "RdBu_r"  # colours of numbers around 0
RC = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "mathtext.fontset": "cm",
    "svg.hashsalt": "linearconv",
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn: its colour, marker and line."""

    color: str
    marker: str
    linestyle: str | tuple = "-"
    size: float = 7.0

    def line(self) -> dict[str, object]:
        """Return arguments of `Axes.plot` for its line."""
        return {"color": self.color, "linestyle": self.linestyle}

    def dot(self) -> dict[str, object]:
        """Return arguments of `Axes.plot` for its marker."""
        return {"color": self.color, "marker": self.marker, "markersize": self.size}


LOOKS = {  # by the beginning of the method's name, the longest that fits
    "Conv": Look("#1a1a1a", "o"),
    "-L": Look("#b8458b", "^", (0, (4, 1.5)), 8),
    "-Lr": Look(PRIMARY, "s"),
    "-LRr": Look("#e08a00", "D", (0, (6, 1.5, 1.5, 1.5))),
    "rank": Look("#6d9bd1", "p", (0, (2, 1)), 8.5),
    "sparse": Look("#2f7d4f", "v", (0, (1, 1)), 8),
    "octave": Look("#7a5195", "h", "-", 8.5),
    "filter basis": Look("#8c6d31", "P", "-", 8.5),
    "Ghost": Look("#5f9ea0", "X", "-", 8.5),
    "SVD": Look("#a63d40", "<", "-", 8),
    "": Look("#8a8a8a", "d", "-", 8),
}


def look(method: str) -> Look:
    """Return the look of a method, called as :func:`experiments.reading.method` does."""
    return LOOKS[max((start for start in LOOKS if method.startswith(start)), key=len)]


@contextmanager
def styled() -> Iterator[None]:
    """Let figures that are made and saved within have fonts, grids and identifiers of this file."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what this machine's matplotlibrc has
        matplotlib.rcParams.update(RC)
        yield


def make(height: float, width: float = WIDTH, layout: str | None = "constrained") -> Figure:
    """Return an empty figure of a height and width in inches."""
    return Figure(figsize=(width, height), layout=layout)


def save(figure: Figure, path: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write a figure as `path` with the suffix of each format, the same bytes for the same figure; return the paths."""
    _settle(figure)
    paths = [path.with_suffix(f".{name}") for name in formats]
    for name, target in zip(formats, paths, strict=True):
        write_whole(target, partial(figure.savefig, format=name, **FORMATS[name]))
    return paths


def _settle(figure):
    """Lay a figure out for good: the last digits, of which names in an SVG are made, differ from time to time."""
    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        place = axes.get_position(original=True)
        axes.set_position([round(number, 6) for number in place.bounds], which="original")


def fill(axes: Axes, values: Sequence[float], axis: str = "y", margin: float = 0.08) -> None:
    """Let the range of some values fill an axis."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.5
    getattr(axes, f"set_{axis}lim")(low - room, high + room)
