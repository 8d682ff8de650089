"""Width, fonts, the look of every method, labels, and how figures are saved.

README shows a figure 900 pixels wide; at that width no letter is smaller than 9 points. Methods differ in marker and
line as well as in colour, and the colours of the paper's four in brightness, so that a grey print tells them apart.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

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
    """Return the look of a method, called as :func:`experiments.results.method` does."""
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


# ---- labels ---------------------------------------------------------------------------------------------------------

DISTANCES, TURNS = (7, 10, 14, 20, 28, 38, 50), 16  # at which labels are tried, in points, and in how many directions
LEADER = 14  # points from which on a line leads to the label


def label(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str]) -> None:
    """Write a text beside each point, near it, where it covers no marker, no line and no other text.

    Args:
        axes: with final limits and layout, and with everything drawn.
        points: in data coordinates.
        texts: a label each.
        colors: of the labels.
    """
    axes.figure.draw_without_rendering()  # the layout is now that of the file
    unit = axes.figure.dpi / 72  # pixels in a point
    frame, pixels = axes.get_window_extent(), axes.transData.transform(points)
    markers = [_square(place, 6 * unit) for place in pixels]
    taken = [_square(place, 3 * unit) for place in _lines(axes)] + 3 * markers  # covered markers are worse than lines
    for point, (x, y), text, color in zip(points, pixels, texts, colors, strict=True):
        how = {"textcoords": "offset points", "va": "bottom", "fontsize": SMALL, "color": color}
        written = axes.annotate(text, point, (0, 0), **how)
        size = written.get_window_extent()
        boxes = [_beside(x, y, size, distance * unit, turn) for distance in DISTANCES for turn in range(TURNS)]
        costs = [_cost(box, (x, y), frame, taken, markers, unit) for box in boxes]
        box = boxes[costs.index(min(costs))]
        taken.append(box)
        written.set_position(((box.x0 - x) / unit, (box.y0 - y) / unit))
        if math.dist((x, y), _nearest(box, x, y)) > LEADER * unit:
            ends = axes.transData.inverted().transform([(x, y), _nearest(box, x, y)])
            axes.plot(*ends.T, color=color, linewidth=0.6, zorder=1)


def _cost(box, point, frame, taken, markers, unit):
    """The area that a label in a box covers or leaves the frame by, with its distance and what its leader crosses."""
    outside = box.width * box.height - _common(box, frame)
    covered = sum(_common(box, other) for other in taken)
    near = _nearest(box, *point)
    away = math.dist(point, near) / unit
    corners = [(min(point[0], near[0]), min(point[1], near[1])), (max(point[0], near[0]), max(point[1], near[1]))]
    crossed = sum(Bbox(corners).padded(1).overlaps(marker) for marker in markers) - 1  # its own is one of them
    return 20 * outside + covered + (2 * away + 100 * crossed * (away > LEADER)) * unit**2


def _square(middle, half):
    return Bbox([(middle[0] - half, middle[1] - half), (middle[0] + half, middle[1] + half)])


def _beside(x, y, size, distance, turn):
    """The box of a text that lies at a distance in one of the directions; the first is to the right."""
    dx, dy = (round(f(2 * math.pi * turn / TURNS), 3) for f in (math.cos, math.sin))
    left = x + dx * distance - size.width * (1 - dx) / 2
    low = y + dy * distance - size.height * (1 - dy) / 2
    return Bbox.from_bounds(left, low, size.width, size.height)


def _nearest(box, x, y):
    return min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)


def _lines(axes):
    """Points in pixels that stand for all lines and error bars."""
    bars = [bar for part in axes.collections if isinstance(part, LineCollection) for bar in part.get_segments()]
    for data in [*(line.get_xydata() for line in axes.lines if line.get_linestyle() != "None"), *bars]:
        pixels = axes.transData.transform(data)
        for start, end in pairwise(pixels):
            steps = max(1, round(math.dist(start, end) / 6))
            yield from (start + (end - start) * step / steps for step in range(steps + 1))


def _common(one, other):
    """The area that two boxes have in common."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0, width) * max(0, height)
