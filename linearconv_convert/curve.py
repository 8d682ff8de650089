"""The curve of a budget, as a picture: expected error of the network's output against its size."""

import importlib
from pathlib import Path

from linearconv_convert.report import Report
from linearconv_convert.surgery import ConversionError


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
