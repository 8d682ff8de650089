"""Labels beside points that cover no marker and no other label: of many places the one that costs least."""

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Bbox

from experiments.figures.style import SMALL

DISTANCES, TURNS = (7, 10, 14, 20, 28, 38, 50), 16  # at which labels are tried, in points, and in how many directions
LEADER = 14  # points from which on a line leads to the label


def label(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str]) -> None:
    """Write a text beside each point where it covers no marker, no line and no other text, as near as may be.

    Args:
        axes: with limits and layout as they stay, and with all that is drawn.
        points: in data coordinates.
        texts: a label each.
        colors: of the labels.
    """
    axes.figure.draw_without_rendering()  # the layout now is that of the file
    unit = axes.figure.dpi / 72  # pixels in a point
    frame, pixels = axes.get_window_extent(), axes.transData.transform(points)
    markers = [_square(place, 6 * unit) for place in pixels]
    taken = [_square(place, 3 * unit) for place in _lines(axes)] + 3 * markers  # covered markers are worse than lines
    for point, (x, y), text, color in zip(points, pixels, texts, colors, strict=True):
        how = {"textcoords": "offset points", "va": "bottom", "fontsize": SMALL, "color": color}
        written = axes.annotate(text, point, (0, 0), **how)
        size = written.get_window_extent()
        places = [_beside(x, y, size, distance * unit, turn) for distance in DISTANCES for turn in range(TURNS)]

        def cost(box, x=x, y=y):
            outside = box.width * box.height - _common(box, frame)
            covered = sum(_common(box, other) for other in taken)
            near = _nearest(box, x, y)
            away = math.dist((x, y), near) / unit
            on_the_way = Bbox([(min(x, near[0]), min(y, near[1])), (max(x, near[0]), max(y, near[1]))]).padded(1)
            crossed = sum(on_the_way.overlaps(marker) for marker in markers) - 1  # its own is one of them
            return 20 * outside + covered + (2 * away + 100 * crossed * (away > LEADER)) * unit**2

        box = min(places, key=cost)
        taken.append(box)
        written.set_position(((box.x0 - x) / unit, (box.y0 - y) / unit))
        if math.dist((x, y), _nearest(box, x, y)) > LEADER * unit:
            ends = axes.transData.inverted().transform([(x, y), _nearest(box, x, y)])
            axes.plot(*ends.T, color=color, linewidth=0.6, zorder=1)


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
