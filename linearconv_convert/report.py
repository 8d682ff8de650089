"""Report of a conversion: parameters, multiply-adds and errors of each convolution; warnings; the curve of a budget."""

import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert.surgery import ConversionWarning, layers_of
from linearconv_variants import Variant

COLUMNS = ("layer", "parameters", "multiply-adds", "setting", "filter error", "output error", "expected")
LEFT = ("layer", "setting")  # left-aligned columns
OTHER_KINDS = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d)
REASONS_OF_USER = ("skipped", "not included")
ADVICE = {"would not get smaller": " (a smaller alpha or budget= may help)", "plain is best": " (of that budget)"}
MIN_SAVING = 0.05  # share of the parameters, below which a warning is raised


@dataclass(frozen=True)
class LayerReport:
    """The conversion of one convolution."""

    name: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None  # multiply-adds of one image in a large batch at inference; None without inputs
    macs_after: int | None = None
    filter_error: float | None = None  # relative error of the filters in the Frobenius norm; None without a fit
    output_error: float | None = None  # the same for the outputs on calibration images; None without calibration
    variant: Variant | None = None  # None for a layer that was not converted
    expected: float | None = None  # relative error of the network's output by this layer, if a budget chose it
    reason: str = ""  # reason why the layer was not converted; empty for a converted layer


@dataclass(frozen=True)
class Report:
    """The conversion of a model; str() returns a table of its convolutions with totals."""

    layers: list[LayerReport]  # one for each convolution
    parameters_before: int  # parameters of the whole model
    parameters_after: int
    macs_before: int | None = None  # multiply-adds of one image in the whole model; None without inputs
    expected: float | None = None  # relative error of the network's output, if a budget chose settings
    curve: list[tuple[float, float]] = field(default_factory=list)  # (size, expected error) of the best choices
    others: dict[str, tuple[int, int]] = field(default_factory=dict)  # {type: (number, parameters)}, not converted

    @property
    def macs_after(self) -> int | None:
        """Multiply-adds of one image in the whole model; None without inputs."""
        saved = sum((layer.macs_before or 0) - (layer.macs_after or 0) for layer in self.layers)
        return None if self.macs_before is None else self.macs_before - saved

    @property
    def converted(self) -> list[LayerReport]:
        """The layers that were converted."""
        return [layer for layer in self.layers if not layer.reason]

    def __str__(self) -> str:
        columns = []
        for title, *cells in zip(COLUMNS, *map(_row, self.layers), strict=True):
            if any(cells):
                width, side = max(map(len, (title, *cells))), "<" if title in LEFT else ">"
                columns.append([f"{cell:{side}{width}}" for cell in (title, *cells)])
        lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
        return "\n".join([*lines, self.totals])

    @property
    def totals(self) -> str:
        """One line with the totals, and a second line with the layers of other types, if there are any."""
        totals = f"{len(self.converted)} of {len(self.layers)} convolutions converted"
        for title, before, after in (
            ("parameters", self.parameters_before, self.parameters_after),
            ("multiply-adds", self.macs_before, self.macs_after),
        ):
            totals += f"; {title} {before:,} -> {after:,} ({after / before:.1%})" if before and after else ""
        totals += f"; expected error {self.expected:.2%}" if self.curve else ""
        others = ", ".join(f"{number} {kind} of {size:,}" for kind, (number, size) in self.others.items())
        return f"{totals}\nnot converted: {others}" if others else totals


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements of all parameters; shared parameters are counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(layer: Any, positions: float) -> int:
    """Return a layer's multiply-adds for output positions, without the multiply-adds of building filters."""
    per_position = layer.weight.numel()
    if isinstance(layer, LinearConv) and layer.combines_maps:
        per_position = layer.conv_weights.numel() + layer.coefficients
    return round(positions * per_position)


def other_layers(model: nn.Module, listed: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return {type: (number, parameters)} of the layers with weights that are not listed in a report."""
    numbers, sizes = Counter[str](), Counter[str]()
    for name, layer in layers_of(model, OTHER_KINDS).items():
        if name not in listed:
            numbers[type(layer).__name__] += 1
            sizes[type(layer).__name__] += count_parameters(layer)
    return {kind: (numbers[kind], sizes[kind]) for kind in numbers}


def _row(layer):
    """The table cells of a layer."""
    cells = [layer.name]
    for unit in ("parameters", "macs"):
        before, after = getattr(layer, f"{unit}_before"), getattr(layer, f"{unit}_after")
        cells.append("" if before is None else f"{before:,}" if before == after else f"{before:,} -> {after:,}")
    if layer.reason:
        return [*cells, layer.reason, "", "", ""]
    rank = "" if layer.variant.rank in (None, 1) else f", rank {layer.variant.rank:g}"
    errors = [layer.filter_error, layer.output_error, layer.expected]
    return [*cells, f"alpha {layer.variant.alpha:.3g}{rank}", *("" if e is None else f"{e:.2%}" for e in errors)]


@contextmanager
def warnings_as_lines(program: str) -> Iterator[None]:
    """In this context, print each warning as one line on stderr that begins with the program's name."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"{program}: {message}", file=sys.stderr)
        yield


def warn_of_savings(report: Report) -> None:
    """Warn if nothing was converted, or if little was saved because most of the parameters were not converted."""
    excluded = sum(layer.parameters_before for layer in report.layers if layer.reason in REASONS_OF_USER)
    wanted = report.parameters_before - excluded
    left = wanted - sum(layer.parameters_before for layer in report.converted)
    saved = report.parameters_before - report.parameters_after
    what = "nothing was converted"
    if report.converted:
        what = f"only {saved / report.parameters_before:.1%} of the parameters were saved"
        if report.curve or saved >= MIN_SAVING * wanted or 2 * left <= wanted:
            return
    warnings.warn(f"{what}: {_reasons(report)}", ConversionWarning, stacklevel=3)


def _reasons(report):
    """The layers that were not converted, grouped by reason, sorted by decreasing number of parameters."""
    numbers, sizes = Counter[str](), Counter[str]()
    for layer in report.layers:
        reason = layer.reason.partition(" (")[0]
        numbers[reason] += bool(reason)
        sizes[reason] += layer.parameters_before
    parts = {}
    for reason, number in (+numbers).items():
        what = "convolution" if number == 1 else "convolutions"
        parts[f"{number} {what} of {sizes[reason]:,} {reason}{ADVICE.get(reason, '')}"] = sizes[reason]
    for kind, (number, size) in report.others.items():
        parts[f"{number} {kind} of {size:,} not converted"] = size
    return "; ".join(sorted(parts, key=parts.get, reverse=True)) or "see the report"


def draw_curve(report: Report, of: str, path: Path) -> None:
    """Write a plot of the expected error of the network's output against its size, with the chosen size marked."""
    from matplotlib.figure import Figure  # not needed without a plot

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    size = 100 * getattr(report, f"{of}_after") / getattr(report, f"{of}_before")
    axes = figure.subplots()
    axes.plot([100 * size for size, _ in report.curve], [100 * error for _, error in report.curve])
    axes.plot(size, 100 * (report.expected or 0), "o", color="black", label=f"chosen: {size:.1f} %")
    unit = "multiply-adds" if of == "macs" else of
    axes.set(xlabel=f"{unit}, % of the dense model's", ylabel="expected error of the output, %", xlim=(0, 100))
    axes.set_ylim(0)
    axes.legend()
    figure.savefig(path, dpi=150)
