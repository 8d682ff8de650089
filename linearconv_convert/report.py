"""The report of a conversion: what became of each convolution, in parameters, multiply-adds and errors."""

from dataclasses import dataclass, field

import torch.nn as nn

from linearconv import LinearConv
from linearconv_variants import Variant

COLUMNS = ("layer", "parameters", "multiply-adds", "setting", "filter error", "output error", "expected")
LEFT = (0, 3)  # columns that are aligned so


@dataclass(frozen=True)
class LayerReport:
    """What became of one convolution."""

    name: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None  # multiply-adds of one image of a large batch at inference; None without inputs
    macs_after: int | None = None
    filter_error: float | None = None  # relative Frobenius norm of what filters differ by; None where nothing is fitted
    output_error: float | None = None  # the same of the outputs on calibration images; None without these
    variant: Variant | None = None  # with its setting; None for a layer that was left alone
    expected: float | None = None  # relative error of the network's output by this layer, where its setting was chosen
    reason: str = ""  # why the layer was left alone; empty for a converted one


@dataclass(frozen=True)
class Report:
    """What became of a model; str() is a table of its convolutions with totals."""

    layers: list[LayerReport]  # of each convolution
    parameters_before: int  # of the whole model
    parameters_after: int
    macs_before: int | None = None  # of one image in the whole model; None without inputs
    expected: float | None = None  # relative error of the network's output, where settings were chosen
    curve: list[tuple[float, float]] = field(default_factory=list)  # (size, expected error) of the best choices
    others: dict[str, tuple[int, int]] = field(default_factory=dict)  # {type: (number, parameters)}, not converted

    @property
    def macs_after(self) -> int | None:
        """Multiply-adds of one image in the whole model; None without inputs."""
        reached = [layer for layer in self.layers if layer.macs_before is not None]
        return self.macs_before and self.macs_before - sum(layer.macs_before - layer.macs_after for layer in reached)

    @property
    def converted(self) -> list[LayerReport]:
        """The layers that were converted."""
        return [layer for layer in self.layers if not layer.reason]

    def __str__(self) -> str:
        rows = [COLUMNS, *map(_row, self.layers)]
        filled = [index for index in range(len(COLUMNS)) if any(row[index] for row in rows[1:])]
        widths = {index: max(len(row[index]) for row in rows) for index in filled}
        lines = []
        for row in rows:
            cells = [f"{row[index]:{'<' if index in LEFT else '>'}{width}}" for index, width in widths.items()]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, self.totals])

    @property
    def totals(self) -> str:
        """What it comes to in all, in a line, and in another one what was not converted, if anything."""
        totals = f"{len(self.converted)} of {len(self.layers)} convolutions converted; parameters "
        totals += _total(self.parameters_before, self.parameters_after)
        if self.macs_before:
            totals += f"; multiply-adds {_total(self.macs_before, self.macs_after)}"
        if self.curve:
            totals += f"; expected error {_percent(self.expected)}"
        others = ", ".join(f"{number} {kind} of {short(size)}" for kind, (number, size) in self.others.items())
        return "\n".join([totals, *([f"not converted: {others}"] if others else [])])


def short(count: int) -> str:
    """Return a count as one reads it: 312, 4.1 k, 1.2 M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def count_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(layer: nn.Conv2d | LinearConv, positions: int) -> int:
    """Return a layer's multiply-adds for one image of a large batch, of H' W' positions summed over its calls."""
    if isinstance(layer, LinearConv):
        primary = layer.primary_channels * layer.filter_size
        return positions * (
            primary + layer.coefficients if layer.combines_maps else layer.out_channels * layer.filter_size
        )
    return positions * layer.weight.numel()


def _row(layer):
    """The cells of a layer."""
    sizes = [_change(getattr(layer, f"{key}_before"), getattr(layer, f"{key}_after")) for key in ("parameters", "macs")]
    errors = [] if layer.reason else [layer.filter_error, layer.output_error, layer.expected]
    filler = [""] * (3 - len(errors))
    return layer.name, *sizes, layer.reason or _setting(layer.variant), *map(_percent, errors), *filler


def _change(before, after):
    if before is None:
        return ""
    return f"{before:,} -> {after:,}" if before != after else f"{before:,}"


def _total(before, after):
    return f"{before:,} -> {after:,} ({100 * after / before:.1f} %)"


def _setting(variant):
    rank = "" if variant.type == "sparse" or variant.rank == 1 else f", rank {variant.rank:g}"
    return f"alpha {variant.alpha:.3g}{rank}"


def _percent(share):
    return "" if share is None else f"{100 * share:.2f} %"
