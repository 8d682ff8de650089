"""Report of a conversion: parameters, multiply-adds and errors of each convolution; warnings; the curve of a budget."""

import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

    def cells(self) -> list[str]:
        """Return the text of each of the `COLUMNS`."""
        cells = [self.name]
        for before, after in (
            (self.parameters_before, self.parameters_after),
            (self.macs_before, self.macs_after),
        ):
            cells.append("" if before is None else f"{before:,}" if before == after else f"{before:,} -> {after:,}")
        if self.variant is None:
            return [*cells, self.reason, "", "", ""]
        rank = "" if self.variant.rank in (None, 1) else f", rank {self.variant.rank:g}"
        errors = [self.filter_error, self.output_error, self.expected]
        return [*cells, f"alpha {self.variant.alpha:.3g}{rank}", *("" if e is None else f"{e:.2%}" for e in errors)]


@dataclass(frozen=True)
class Report:
    """The conversion of a model; str() returns a table of its convolutions with totals."""

    layers: list[LayerReport]  # one for each convolution
    parameters_before: int  # parameters of the whole model
    parameters_after: int
    macs_before: int | None  # multiply-adds of one image in the whole model; None without inputs
    expected: float | None  # relative error of the network's output, if a budget chose settings
    curve: list[tuple[float, float]]  # (size, expected error) of the best choices; empty without a budget
    others: dict[str, list[int]]  # {type: parameters of each layer} of the layers of other types

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
        for title, *cells in zip(COLUMNS, *(layer.cells() for layer in self.layers), strict=True):
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
        others = ", ".join(f"{len(sizes)} {kind} of {sum(sizes):,}" for kind, sizes in self.others.items())
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


def other_layers(model: nn.Module, listed: Collection[str]) -> dict[str, list[int]]:
    """Return {type: parameters of each layer} of the layers with weights that are not listed in a report."""
    others: dict[str, list[int]] = {}
    for name, layer in layers_of(model, OTHER_KINDS).items():
        if name not in listed:
            others.setdefault(type(layer).__name__, []).append(count_parameters(layer))
    return others


@contextmanager
def warnings_as_lines(program: str) -> Iterator[None]:
    """In this context, print each warning as one line on stderr that begins with the program's name."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"{program}: {message}", file=sys.stderr)
        yield


def warn_of_savings(report: Report) -> None:
    """Warn if nothing was converted, or if little was saved because most of the parameters were not converted."""
    sizes: dict[str, list[int]] = {}  # parameters of the layers, by reason
    for layer in report.layers:
        if layer.reason:
            sizes.setdefault(layer.reason.partition(" (")[0], []).append(layer.parameters_before)
    wanted = report.parameters_before - sum(sum(sizes.get(reason, ())) for reason in REASONS_OF_USER)
    left = wanted - sum(layer.parameters_before for layer in report.converted)
    saved = report.parameters_before - report.parameters_after
    text = "nothing was converted"
    if report.converted:
        text = f"only {saved / report.parameters_before:.1%} of the parameters were saved"
        if report.curve or saved >= MIN_SAVING * wanted or 2 * left <= wanted:
            return
    parts = {f"{len(each)} {kind} of {sum(each):,} not converted": sum(each) for kind, each in report.others.items()}
    for reason, each in sizes.items():
        what = "convolution" if len(each) == 1 else "convolutions"
        parts[f"{len(each)} {what} of {sum(each):,} {reason}"] = sum(each)
    reasons = "; ".join(sorted(parts, key=parts.__getitem__, reverse=True)) or "see the report"
    warnings.warn(f"{text}: {reasons}", ConversionWarning, stacklevel=3)


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
