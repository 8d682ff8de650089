"""Style of all figures: width, fonts, the look of every method, labels, and file formats.

README shows a figure 900 pixels wide; at this width no letter is smaller than 9 points. Methods differ in marker and
line as well as in colour. The colours of the paper's four methods also differ in brightness, for prints in grey.
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
PRIMARY, SECONDARY = "#1b5faa", "#c75f00"  # learned filters and their maps, and combined ones
INK, FAINT = "#1a1a1a", "#8a8a8a"
FORMATS = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 144}}
DASHED = (0, (6, 3))  # line of the dense network
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
    """The look of a method: colour, marker and line."""

    color: str
    marker: str
    linestyle: str | tuple = "-"
    size: float = 7.0

    def line(self) -> dict[str, object]:
        """Return arguments of `Axes.plot` for the line."""
        return {"color": self.color, "linestyle": self.linestyle}

    def dot(self) -> dict[str, object]:
        """Return arguments of `Axes.plot` for the marker."""
        return {"color": self.color, "marker": self.marker, "markersize": self.size}


LOOKS = {  # by the beginning of the method's name; the longest match applies
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
    """Return the look of a method, named as by :func:`experiments.results.method`."""
    return LOOKS[max((start for start in LOOKS if method.startswith(start)), key=len)]


@contextmanager
def styled() -> Iterator[None]:
    """Within the context, create and save figures with the fonts, grids and identifiers of this file."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore this machine's matplotlibrc
        matplotlib.rcParams.update(RC)
        yield


def make(height: float, width: float = WIDTH, layout: str | None = "constrained") -> Figure:
    """Return an empty figure with height and width in inches."""
    return Figure(figsize=(width, height), layout=layout)


def save(figure: Figure, path: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write a figure to `path` with each format's suffix, with reproducible bytes; return the paths."""
    _settle(figure)
    paths = [path.with_suffix(f".{name}") for name in formats]
    for name, target in zip(formats, paths, strict=True):
        write_whole(target, partial(figure.savefig, format=name, **FORMATS[name]))
    return paths


def _settle(figure):
    """Fix the layout with rounded positions: their last digits vary, and names in an SVG depend on them."""
    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        place = axes.get_position(original=True)
        axes.set_position([round(number, 6) for number in place.bounds], which="original")


def fill(axes: Axes, values: Sequence[float], axis: str = "y", margin: float = 0.08) -> None:
    """Set the limits of an axis to the range of the values, with a margin."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.5
    getattr(axes, f"set_{axis}lim")(low - room, high + room)


# ---- labels ---------------------------------------------------------------------------------------------------------

DISTANCES, TURNS = (7, 10, 14, 20, 28, 38, 50), 16  # distances of candidate labels in points, number of directions
LEADER = 14  # points of distance above which a line leads to the label


def label(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str]) -> None:
    """Write a text near each point, at a position where it covers no markers, lines and other texts.

    Args:
        axes: completely drawn, with final limits and layout.
        points: positions in data coordinates.
        texts: the label of each point.
        colors: the colour of each label.
    """
    axes.figure.draw_without_rendering()  # the layout is now final
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
    """Return the cost of a label's box: area covered and outside, distance, markers that its leader crosses."""
    outside = box.width * box.height - _common(box, frame)
    covered = sum(_common(box, other) for other in taken)
    near = _nearest(box, *point)
    away = math.dist(point, near) / unit
    corners = [(min(point[0], near[0]), min(point[1], near[1])), (max(point[0], near[0]), max(point[1], near[1]))]
    crossed = sum(Bbox(corners).padded(1).overlaps(marker) for marker in markers) - 1  # less its own marker
    return 20 * outside + covered + (2 * away + 100 * crossed * (away > LEADER)) * unit**2


def _square(middle, half):
    return Bbox([(middle[0] - half, middle[1] - half), (middle[0] + half, middle[1] + half)])


def _beside(x, y, size, distance, turn):
    """Return the box of a text at a distance in one of the directions; the first direction is to the right."""
    dx, dy = (round(f(2 * math.pi * turn / TURNS), 3) for f in (math.cos, math.sin))
    left = x + dx * distance - size.width * (1 - dx) / 2
    low = y + dy * distance - size.height * (1 - dy) / 2
    return Bbox.from_bounds(left, low, size.width, size.height)


def _nearest(box, x, y):
    return min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)


def _lines(axes):
    """Yield points in pixels along all lines and error bars."""
    bars = [bar for part in axes.collections if isinstance(part, LineCollection) for bar in part.get_segments()]
    for data in [*(line.get_xydata() for line in axes.lines if line.get_linestyle() != "None"), *bars]:
        pixels = axes.transData.transform(data)
        for start, end in pairwise(pixels):
            steps = max(1, round(math.dist(start, end) / 6))
            yield from (start + (end - start) * step / steps for step in range(steps + 1))


def _common(one, other):
    """Return the area of the intersection of two boxes."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0, width) * max(0, height)
