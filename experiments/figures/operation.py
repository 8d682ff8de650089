"""The figure of the operation, computed by a layer: P primary maps by convolution, F - P combinations of these maps.

python -m experiments.figures operation
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from experiments.figures.style import PRIMARY, SECONDARY, SIGNED, make
from linearconv import LinearConv

ARROW = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}


def picture(side: int = 48) -> torch.Tensor:
    """Return an image (1, 1, side, side) of a ring and two bars, to which edge filters respond."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    ring = ((x + 0.25).hypot(y + 0.2) - 0.45).abs() < 0.14
    bars = ((x - y - 0.95).abs() < 0.13) | (((y - 0.72).abs() < 0.1) & (x < 0.2))
    return (ring | bars).float()[None, None]


def layer() -> LinearConv:
    """Return a layer with eight filters: four primary filters for edges and lines, and signed mixtures of these."""
    made = LinearConv(1, 8, 3, padding=1, padding_mode="replicate", bias=False)
    edge = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    line = torch.tensor([[-1.0, -1, 2], [-1, 2, -1], [2, -1, -1]])
    with torch.no_grad():
        made.conv_weights.copy_(torch.stack([edge, edge.T, line, line.flip(1)])[:, None])
        mixtures = [[0.8, -0.6, 0, 0.3], [0, 0.7, 0.9, -0.4], [0.5, 0, -0.7, -0.8], [0.6, 0.8, 0, 0.9]]
        made.linear_weights.copy_(torch.tensor(mixtures))
    return made


def draw(results: Path | None = None) -> Figure:
    """Return the figure, 9 inches wide, with a hundredth of its width as the unit. No results are needed."""
    figure = make(4.2, 9, layout=None)
    height = 100 * 4.2 / 9
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(0, height))
    canvas.axis("off")

    def show(tensor, x, y, width, colour="black", **how):
        tall = width * tensor.shape[0] / tensor.shape[1]
        axes = figure.add_axes((x / 100, y / height, width / 100, tall / height), xticks=[], yticks=[])
        axes.imshow(tensor.detach().numpy(), interpolation="none", **how)
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=1.6, visible=True)

    def write(x, y, text, colour="black"):
        canvas.text(x, y, text, color=colour, ha="center", va="center", fontsize=12.5, linespacing=1.3)

    def point(start, end, colour):
        canvas.add_patch(FancyArrowPatch(start, end, color=colour, **ARROW))

    image, operation = picture(), layer()
    with torch.no_grad():
        maps = operation(image)[0]  # (F, H, W)
    signed = {"cmap": SIGNED, "vmin": -6, "vmax": 6}
    top, low = 31.6, 11  # rows of primary and secondary maps

    show(image[0, 0], 2, top - 2, 13, cmap="gray_r")
    write(8.5, top - 4.5, "input $x$")
    for index, kernel in enumerate(operation.conv_weights[:, 0]):
        show(kernel, 24 + 6 * (index % 2), top + 4.5 - 6 * (index // 2), 5, PRIMARY, cmap=SIGNED, vmin=-2.5, vmax=2.5)
    write(29.5, top + 12.5, "$P$ primary filters $W_p$", PRIMARY)
    point((15.8, top + 4.5), (22.8, top + 4.5), PRIMARY)
    point((36.2, top + 4.5), (44.2, top + 4.5), PRIMARY)
    write(40, top + 7, "convolve", PRIMARY)

    for index in range(4):
        show(maps[index], 45.5 + 10.5 * index, top, 9.5, PRIMARY, **signed)
        show(maps[4 + index], 45.5 + 10.5 * index, low, 9.5, SECONDARY, **signed)
    write(66, top + 12.5, "$P$ primary maps  $W_p * x$", PRIMARY)
    write(66, low - 2.8, "$F - P$ secondary maps  $A\\,(W_p * x)$", SECONDARY)

    show(operation.linear_weights, 24.5, low - 0.5, 10.5, SECONDARY, cmap=SIGNED, vmin=-1, vmax=1)
    write(29.5, low - 2.8, "coefficients $A$", SECONDARY)
    canvas.plot([86.5, 86.5, 40.2, 40.2], [top - 1, top - 2.2, top - 2.2, low + 4.7], color=SECONDARY, linewidth=1.4)
    write(66, 25.8, "each a weighted sum of all primary maps", SECONDARY)
    point((36.2, low + 4.7), (44.2, low + 4.7), SECONDARY)
    write(40.2, low + 2.2, "combine", SECONDARY)

    canvas.plot([88.2, 89.2, 89.2, 88.2], [top + 9.5, top + 9.5, low, low], color="black", linewidth=1.4)
    write(94.5, (top + 9.5 + low) / 2, "output $y$\n$F$ maps")
    write(50, 3.2, "$W = [\\,W_p\\;;\\;A\\,W_p\\,]$      so      $y = W * x = [\\,W_p * x\\;;\\;A\\,(W_p * x)\\,]$")
    return figure
