"""Draw the figures from the files in results/; no checkpoint is read and no network is trained.

    python -m experiments.figures                              # all of them, to results/figures/ as .svg and .png
    python -m experiments.figures ablations training_curves    # some
    python -m experiments.figures accuracy_parameters --results base_cifar10     # default: Base and VGG11
    python -m experiments.figures --results-folder DIR         # from other results, to DIR/figures/

A figure without results is skipped, and a line names the missing results. matplotlib is required (pip install
matplotlib). Each figure is a file in this folder, whose docstring describes the figure.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.results import RESULTS, NoResults
from linearconv_variants import OneLineParser
from training.errors import EXPECTED, report_failure

FIGURES = ("correlation", "training_curves", "accuracy_parameters", "compression", "ablations")
WITH_CHOICE = ("accuracy_parameters", "compression")  # figures of one result, which --results chooses


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(
        prog="python -m experiments.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} (default: all)")
    add("--results-folder", type=Path, default=RESULTS, metavar="DIR", help="with the results (default: results)")
    add("--results", metavar="NAME", help=f"the result that {' or '.join(WITH_CHOICE)} shows")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}: choose of {', '.join(FIGURES)}")
    folder = options.results_folder
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}")
    if not importlib.util.find_spec("matplotlib"):
        parser.error("figures need matplotlib: pip install matplotlib")
    from experiments.figures.style import save

    try:
        (folder / "figures").mkdir(exist_ok=True)
        for name in options.names or FIGURES:
            figure = importlib.import_module(f"experiments.figures.{name}")
            chosen = [Path(options.results).stem] if options.results and name in WITH_CHOICE else []
            try:
                print("written:", *save(figure.draw(folder, *chosen), folder / "figures" / name))
            except NoResults as reason:
                print(f"left out: {name}: {reason}")
    except EXPECTED as error:
        return report_failure(error, "figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
