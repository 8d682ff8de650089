"""Report of a conversion: parameters, multiply-adds and errors of each convolution; warnings; the curve of a budget."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert.surgery import ConversionError, ConversionWarning, layers_of
from linearconv_variants import Variant

COLUMNS = ("layer", "parameters", "multiply-adds", "setting", "filter error", "output error", "expected")
LEFT = (0, 3)  # left-aligned columns
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
        """One line with the totals, and a second line with the layers of other types, if there are any."""
        totals = f"{len(self.converted)} of {len(self.layers)} convolutions converted; parameters "
        totals += _total(self.parameters_before, self.parameters_after)
        if self.macs_before:
            totals += f"; multiply-adds {_total(self.macs_before, self.macs_after)}"
        if self.curve:
            totals += f"; expected error {_percent(self.expected)}"
        others = ", ".join(f"{number} {kind} of {short_count(size)}" for kind, (number, size) in self.others.items())
        return f"{totals}\nnot converted: {others}" if others else totals


def short_count(count: int) -> str:
    """Return a count with a unit: 312, 4.1 k, 1.2 M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements of all parameters; shared parameters are counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(layer: nn.Conv2d | LinearConv, positions: float) -> int:
    """Return a layer's multiply-adds for H' W' output positions, without the multiply-adds of building filters."""
    if not isinstance(layer, LinearConv):
        return round(positions * layer.weight.numel())
    if layer.combines_maps:
        return round(positions * (layer.conv_weights.numel() + layer.coefficients))
    return round(positions * layer.out_channels * layer.filter_size)


def other_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {type: (number, parameters)} of the layers with weights that are not an nn.Conv2d."""
    numbers, sizes = Counter(), Counter()
    for layer in layers_of(model, OTHER_KINDS).values():
        numbers[type(layer).__name__] += 1
        sizes[type(layer).__name__] += count_parameters(layer)
    return {kind: (numbers[kind], sizes[kind]) for kind in numbers}


def _row(layer):
    """The table cells of a layer."""
    parameters = _change(layer.parameters_before, layer.parameters_after)
    macs = _change(layer.macs_before, layer.macs_after)
    if layer.reason:
        return layer.name, parameters, macs, layer.reason, "", "", ""
    rank = "" if layer.variant.rank in (None, 1) else f", rank {layer.variant.rank:g}"
    errors = map(_percent, (layer.filter_error, layer.output_error, layer.expected))
    return layer.name, parameters, macs, f"alpha {layer.variant.alpha:.3g}{rank}", *errors


def _change(before, after):
    if before is None:
        return ""
    return f"{before:,} -> {after:,}" if before != after else f"{before:,}"


def _total(before, after):
    return f"{before:,} -> {after:,} ({100 * after / before:.1f} %)"


def _percent(share):
    return "" if share is None else f"{100 * share:.2f} %"


# ---- warnings --------------------------------------------------------------------------------------------------------


@contextmanager
def warnings_as_lines(program: str) -> Iterator[None]:
    """In this context, print each ConversionWarning as one line on stderr that begins with the program's name."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def print_line(message, category, *where, **more):
            if issubclass(category, ConversionWarning):
                print(f"{program}: {message}", file=sys.stderr)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = print_line
        yield


def warn_of_small_savings(report: Report, stacklevel: int = 3) -> None:
    """Warn if nothing was converted, or if little was saved because most of the parameters were not converted."""
    excluded = sum(layer.parameters_before for layer in report.layers if layer.reason in REASONS_OF_USER)
    wanted = report.parameters_before - excluded
    left = wanted - sum(layer.parameters_before for layer in report.converted)
    saved = report.parameters_before - report.parameters_after
    if not report.converted:
        what = "nothing was converted"
    elif not report.curve and saved < MIN_SAVING * wanted and 2 * left > wanted:
        what = f"only {100 * saved / report.parameters_before:.1f} % of the parameters were saved"
    else:
        return
    warnings.warn(f"{what}: {_reasons(report)}", ConversionWarning, stacklevel=stacklevel)


def _reasons(report):
    """The layers that were not converted, grouped by reason, sorted by decreasing number of parameters."""
    numbers, sizes = Counter(), Counter()
    for layer in report.layers:
        reason = layer.reason.partition(" (")[0]
        numbers[reason] += 1
        sizes[reason] += layer.parameters_before
    parts = {}
    for reason in filter(None, numbers):
        what = "convolution" if numbers[reason] == 1 else "convolutions"
        text = f"{numbers[reason]} {what} of {short_count(sizes[reason])} {reason}{ADVICE.get(reason, '')}"
        parts[text] = sizes[reason]
    for kind, (number, size) in report.others.items():
        parts[f"{number} {kind} of {short_count(size)} not converted"] = size
    return "; ".join(sorted(parts, key=parts.get, reverse=True)) or "see the report"


# ---- the curve of a budget -------------------------------------------------------------------------------------------


def new_figure() -> object:
    """Return an empty figure of matplotlib.

    Raises:
        ConversionError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConversionError("a picture of the curve needs the package matplotlib: pip install matplotlib") from None
    return Figure(figsize=(5, 3.5), layout="constrained")


def draw_curve(figure: object, report: Report, of: str, path: Path) -> None:
    """Write a plot of the expected error of the network's output against its size, with the chosen size marked."""
    size = 100 * getattr(report, f"{of}_after") / getattr(report, f"{of}_before")
    axes = figure.subplots()
    axes.plot([100 * size for size, _ in report.curve], [100 * error for _, error in report.curve])
    axes.plot(size, 100 * report.expected, "o", color="black", label=f"chosen: {size:.1f} %")
    axes.set(xlabel=f"{'multiply-adds' if of == 'macs' else of}, % of the dense model's", xlim=(0, 100), ylim=(0, None))
    axes.set_ylabel("expected error of the output, %")
    axes.legend()
    figure.savefig(path, dpi=150)
