"""The report of a conversion: what became of each convolution, in parameters, multiply-adds and errors."""

import importlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert.surgery import ConversionError, ConversionWarning, layers_of
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
        others = ", ".join(f"{number} {kind} of {short_count(size)}" for kind, (number, size) in self.others.items())
        return "\n".join([totals, *([f"not converted: {others}"] if others else [])])


def short_count(count: int) -> str:
    """Return a count as one reads it: 312, 4.1 k, 1.2 M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def count_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(layer: nn.Conv2d | LinearConv, positions: int) -> int:
    """Return a layer's multiply-adds for H' W' output positions, without those of building filters."""
    if not isinstance(layer, LinearConv):
        return positions * layer.weight.numel()
    if layer.combines_maps:
        return positions * (layer.conv_weights.numel() + layer.coefficients)
    return positions * layer.out_channels * layer.filter_size


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


OTHER_KINDS = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d)
CHOSEN_REASONS = ("skipped", "not included")  # which the user gave
MIN_SAVING = 0.05  # of the parameters


@contextmanager
def warnings_as_lines(program: str) -> Iterator[None]:
    """While the context lasts, print a ConversionWarning as one line on stderr that begins with a program's name."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message, category, *where, **more):
            if issubclass(category, ConversionWarning):
                print(f"{program}: {message}", file=sys.stderr)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell
        yield


def other_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {type: (number, parameters)} of the layers with weights that are no nn.Conv2d."""
    found = defaultdict(lambda: (0, 0))
    for layer in layers_of(model, OTHER_KINDS).values():
        number, parameters = found[type(layer).__name__]
        found[type(layer).__name__] = number + 1, parameters + count_parameters(layer)
    return dict(found)


def warn_of_small_savings(report: Report, stacklevel: int = 3) -> None:
    """Warn where nothing was converted, or little was saved because most of what the user meant was left alone."""
    left_out = sum(layer.parameters_before for layer in report.layers if layer.reason in CHOSEN_REASONS)
    meant = report.parameters_before - left_out
    left = meant - sum(layer.parameters_before for layer in report.converted)
    saved = report.parameters_before - report.parameters_after
    if not report.converted:
        what = "nothing was converted"
    elif not report.curve and saved < MIN_SAVING * meant and 2 * left > meant:
        what = f"only {100 * saved / report.parameters_before:.1f} % of the parameters were saved"
    else:
        return
    warnings.warn(f"{what}: {_reasons(report)}", ConversionWarning, stacklevel=stacklevel)


def _reasons(report):
    """What was left alone, the most parameters first."""
    groups = defaultdict(lambda: (0, 0))
    for layer in report.layers:
        if layer.reason:
            number, parameters = groups[layer.reason.partition(" (")[0]]
            groups[layer.reason.partition(" (")[0]] = number + 1, parameters + layer.parameters_before
    parts = {
        f"{number} convolution{'s' * (number > 1)} of {short_count(size)} {_with_advice(why)}": size
        for why, (number, size) in groups.items()
    }
    parts |= {
        f"{number} {kind} of {short_count(size)} not converted": size for kind, (number, size) in report.others.items()
    }
    return "; ".join(sorted(parts, key=parts.get, reverse=True)) or "see the report"


def _with_advice(reason):
    cures = {"would not get smaller": " (a smaller alpha or budget= may help)", "plain is best": " (of that budget)"}
    return reason + cures.get(reason, "")


def new_figure() -> object:
    """Return an empty figure of matplotlib's; a ConversionError where that is missing."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ConversionError("a picture of the curve needs the package matplotlib: pip install matplotlib") from None
    return module.Figure(figsize=(5, 3.5), layout="constrained")


def draw_curve(figure: object, report: Report, of: str, path: Path) -> None:
    """Draw the best choices for all sizes, and what was chosen, to a file whose ending matplotlib knows."""
    size = getattr(report, f"{of}_after") / getattr(report, f"{of}_before")
    axes = figure.subplots()
    axes.plot(*([100 * value for value in values] for values in zip(*report.curve, strict=True)))
    axes.plot(100 * size, 100 * report.expected, "o", color="black", label=f"chosen: {100 * size:.1f} %")
    axes.set(xlabel=f"{'multiply-adds' if of == 'macs' else of}, % of the dense model's", xlim=(0, 100), ylim=(0, None))
    axes.set_ylabel("expected error of the output, %")
    axes.legend()
    figure.savefig(path, dpi=150)
