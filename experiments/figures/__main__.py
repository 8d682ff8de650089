"""Draw the figures from what lies in results/ alone: no checkpoint is read, no network trained.

    python -m experiments.figures                              # all of them, to results/figures/ as .svg and .png
    python -m experiments.figures table1 training_curves       # some
    python -m experiments.figures accuracy_parameters --results base_cifar10
    python -m experiments.figures --results-folder DIR         # from other results, to DIR/figures/

A figure whose results are not there is left out, and a line says so. Needs matplotlib (pip install matplotlib). Each
figure is a file of drawing/, whose docstring says what it shows.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.results import RESULTS, NoResults
from linearconv_variants import OneLineParser
from training.errors import EXPECTED, UsageError, report_failure
from training.report import ROOT

FIGURES = (
    "operation",
    "correlation",
    "table1",
    "training_curves",
    "accuracy_parameters",
    "compression",
    "ablations",
)


def matplotlib_is_there() -> bool:
    """Return True where matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(names: Sequence[str], folder: Path, **chosen: str) -> None:
    """Draw figures to `<folder>/figures/`, and say of each what was written or why it is left out.

    Args:
        names: out of `FIGURES`.
        folder: with the results.
        chosen: by a figure's name, the result that it shows, where that is not the usual one.

    Raises:
        UsageError: where matplotlib is missing, or a result cannot be read.
    """
    if not matplotlib_is_there():
        raise UsageError("figures need matplotlib: pip install matplotlib")
    from experiments.figures import style

    (folder / "figures").mkdir(exist_ok=True)
    for name in names:
        part = importlib.import_module(f"experiments.figures.{name}")
        given = [chosen[name]] if name in chosen else []
        try:
            with style.styled():
                written = style.save(part.draw(folder, *given), folder / "figures" / name)
        except NoResults as reason:
            print(f"left out: {name}: {reason}")
            continue
        print("written:", *(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path for path in written))


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = OneLineParser(
        prog="python -m experiments.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} (default: all)")
    add("--results-folder", type=Path, default=RESULTS, metavar="DIR", help="where results lie (default: results)")
    add("--results", metavar="NAME", help="the sweep whose methods accuracy_parameters shows (default: the fullest)")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}: choose of {', '.join(FIGURES)}")
    folder = options.results_folder.resolve()
    chosen = {"accuracy_parameters": Path(options.results).stem} if options.results else {}
    try:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {options.results_folder}")
        draw(options.names or FIGURES, folder, **chosen)
    except EXPECTED as error:
        return report_failure(error, "figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
