"""Run a training script over lists of settings, data sets and seeds: accuracy against parameters and FLOPs.

    python -m experiments.sweep models/base_xcnn.py --name base -t dense rank sparse -r 0.1 0.25 0.5 1 -s 0.25 0.5 0.75
    python -m experiments.sweep ... --seeds 0 1 2 --datasets cifar10 svhn --alpha 0.25 0.5 --epochs 20
    python -m experiments.sweep ... --vary reg-weight 0 0.001 0.01 --vary lr 1e-3 1e-4    # any option of the script
    python -m experiments.sweep ... --jobs 4              # four runs side by side
    python -m experiments.sweep ... --shard 2/8           # the 2nd of 8 shares, for a scheduler
    python -m experiments.sweep ... --dry-run             # list the runs and their states
    python -m experiments.sweep ... --table               # table and plot of the finished runs
    python -m experiments.sweep ... --table --columns setting parameters accuracy against_dense best
    python -m experiments.sweep ... --batch-size 100      # an option of the script applies to every run; also after --

Each run is a separate process in ckpt/<name>/<run>/, with its output in output.txt. When a run ends, its settings,
report and log are added to runs/<name>.json. The same command again skips the runs in that file, even if ckpt/ is
deleted, and resumes interrupted runs. Several sweeps may share a name, because each run is locked. When all runs are
done, a table of runs/<name>.json is printed and written as .md and .csv, and runs/<name>.png is drawn.

-s applies to sparse, -r to rank and lowrank; if both are given, rank uses the shares up to 1 and lowrank the numbers
above 1. A type without values uses the script's default, and does not repeat for options that have no effect on it, as
dense for --alpha or --vary reg-weight.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from baselines import HELP
from dataloaders import DATASETS
from experiments.results import comparable, every_run
from experiments.sweep.command import carry_out, parse_sweep, sweep_parser
from experiments.sweep.plan import plan
from experiments.sweep.runner import Results
from experiments.sweep.table import COLUMNS, USUAL_COLUMNS, markdown, write_table
from linearconv_variants import add_options
from training.errors import EXPECTED, report_failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        return carry_out(plan(options, extra), options, lambda results: show(results, options.columns))
    except EXPECTED as error:
        return report_failure(error, "sweep")


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the sweep's own options, and the training options."""
    parser = sweep_parser("sweep", __doc__)
    add = parser.add_argument
    add("script", type=Path, help="a training script of models/")
    add_options(parser, several=True, others=HELP)
    add("--datasets", choices=DATASETS, nargs="+", help="default: the script's choice")
    add("--network", nargs="+", help="networks of the script's family; default: the first")
    varied = "an option of the script, without --, and its values (a list in quotes); may be repeated"
    add("--vary", action="append", nargs="+", default=[], metavar=("OPTION", "VALUE"), help=varied)
    shown = f"columns of the table (default: {' '.join(USUAL_COLUMNS)})"
    add("--columns", choices=COLUMNS, nargs="+", default=USUAL_COLUMNS, help=shown)
    options, extra = parse_sweep(parser, argv)
    if not options.script.is_file():
        parser.error(f"there is no script {options.script}")
    return options, extra


def show(results: Results, columns: Sequence[str]) -> None:
    """Print and write the table, and draw the plot, of all runs in the result file."""
    path = results.path
    runs = list(every_run(path.parent, path.stem))
    lines = markdown(runs, columns)
    print("\n".join(lines))
    with results.locked():  # two shards may end at the same time
        written = write_table(path, lines, runs)
        try:
            from experiments.figures.accuracy_parameters import figure_of
            from experiments.figures.style import save
        except ImportError:
            print("no plot: matplotlib is not installed (pip install matplotlib)")
        else:
            written += save(figure_of(comparable(runs)), path, ["png"])
    print(f"written: {path}, {', '.join(other.name for other in written)}")


if __name__ == "__main__":
    sys.exit(main())
