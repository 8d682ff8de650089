"""Run a training script over lists of settings, data sets and seeds, and compare accuracy with parameters and FLOPs.

    python -m experiments.sweep models/base_xcnn.py --name base -t dense rank sparse -r 0.1 0.25 0.5 1 -s 0.25 0.5 0.75
    python -m experiments.sweep ... --seeds 0 1 2 --datasets cifar10 svhn --alpha 0.25 0.5 --epochs 20
    python -m experiments.sweep ... --vary reg-weight 0 0.001 0.01 --vary lr 1e-3 1e-4    # any option of the script
    python -m experiments.sweep ... --jobs 4              # four runs side by side
    python -m experiments.sweep ... --shard 2/8           # the 2nd of 8 shares, for a scheduler
    python -m experiments.sweep ... --dry-run             # list the runs and how far they are
    python -m experiments.sweep ... --table               # table and plot of what is done
    python -m experiments.sweep ... --table --columns setting parameters accuracy against_dense best
    python -m experiments.sweep ... -- --batch-size 100   # what stands behind -- goes to every run

Each run is a process of its own in ckpt/<name>/<run>/, with its output in output.txt there. When it ends, its settings,
report and log go into results/<name>.json. The same command again skips what stands there, whether or not ckpt/ still
has it, and goes on with what was interrupted; several sweeps may share a name, as each run is locked while it goes.
When all runs are done, a table of all in results/<name>.json is printed, and results/<name>.png is drawn.

Which values go with which type: -s with sparse, -r with rank and lowrank; where both of these are asked for, shares up
to 1 go to rank and numbers above 1 to lowrank. Left out, -t is what the values belong to. A type without values takes
the script's default. dense, the reference, has neither values nor alpha and comes once per data set, seed
and choice of --vary's values.
"""

import os
import re
import sys
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import torch

from dataloaders import DATASETS
from experiments.command_line import split_arguments
from experiments.sweep_plan import plan
from experiments.sweep_results import Results
from experiments.sweep_runner import Runner, cores
from experiments.sweep_runs import is_locked
from experiments.sweep_table import COLUMNS, USUAL_COLUMNS, markdown, plot
from linearconv_variants import OneLineParser, add_options
from training.errors import EXPECTED, UsageError, report_failure
from training.options import positive_int
from training.report import ROOT

CORES_PER_JOB = 4  # on a CPU, where --jobs is left out
GIVEN_BY_SWEEP = {"--network", "--output", "--resume", "--count-only"}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    options, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        return sweep(options, extra)
    except EXPECTED as error:
        return report_failure(error, "sweep")


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the sweep's own options, and the training options behind `--`.

    Raises:
        SystemExit: with code 2 after one line on stderr.
    """
    parser = OneLineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("script", type=Path, help="a training script of models/")
    add("--name", required=True, help="of the sweep: its folder in ckpt/ and its files in results/")
    add_options(parser, several=True)
    add("--seeds", type=int, nargs="+")
    add("--datasets", choices=DATASETS, nargs="+", help="default: the script's choice")
    add("--network", nargs="+", help="networks of the script's family; default: the first")
    add("--epochs", type=positive_int)
    varied = (
        "an option of the script and its values (a list as one word, in quotes), combined with all else; repeatable"
    )
    add("--vary", action="append", nargs="+", default=[], metavar=("OPTION", "VALUE"), help=varied)
    add("--note", help="what the data are, kept in the result")
    add("--jobs", type=positive_int, help=f"runs side by side (default: one per GPU, or per {CORES_PER_JOB} cores)")
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help="run the I-th of N shares only")
    add("--dry-run", action="store_true", help="list the runs and how far they are")
    add("--table", action="store_true", help="run nothing: table and plot of what is done")
    shown = f"of the table (default: {' '.join(USUAL_COLUMNS)})"
    add("--columns", choices=COLUMNS, nargs="+", default=USUAL_COLUMNS, help=shown)
    add("--ckpt", type=Path, default=ROOT / "ckpt", metavar="DIR", help="for the runs (default: ckpt)")
    add("--results", type=Path, default=ROOT / "results", metavar="DIR", help="for table and plot (default: results)")
    own, extra = split_arguments(argv)
    options = parser.parse_args(own)
    if not options.script.is_file():
        parser.error(f"there is no script {options.script}")
    if not re.fullmatch(r"\w[\w.-]*", options.name):
        parser.error(f"--name must be a plain file name, got {options.name!r}")
    if taken := GIVEN_BY_SWEEP & {word.split("=")[0] for word in extra}:
        parser.error(f"{' '.join(sorted(taken))} cannot stand behind --: the sweep gives each run its own")
    return options, extra


def shard(text: str) -> tuple[int, int]:
    """Return (i, n) of `i/n`, for argparse."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text}")
    return int(match[1]), int(match[2])


def sweep(options: Namespace, extra: Sequence[str]) -> int:
    """List, run or show the runs that the options ask for.

    Returns:
        The exit code: 1 where runs have failed, 128 and more after a signal.

    Raises:
        UsageError: where folders or results hold runs of other settings, or there is nothing to show.
    """
    every = plan(options, extra)
    results = Results(options.results / f"{options.name}.json", options.ckpt / options.name / "results.lock", every)
    states = {run.name: "done" if results.holds(run) else run.state() for run in every}  # or another's: told first
    runs = every[options.shard[0] - 1 :: options.shard[1]]
    if options.dry_run:
        for run in runs:
            print(f"{'running' if is_locked(run.lock) else states[run.name]:12s} {run.name:40s} {run.command}")
        return 0
    results.add([run for run in every if states[run.name] == "done"], options.note)
    if not options.table:
        gpus = gpus_for(every[0].device)
        jobs = options.jobs or len(gpus) or (max(1, cores() // CORES_PER_JOB) if every[0].device == "cpu" else 1)
        runner = Runner(runs, results, jobs, gpus)
        print(f"{len(runs)} runs, {runner.ended} done; {jobs} at a time, threads of each: {runner.threads}", flush=True)
        runner.go()
        if runner.signals:
            done = sum(results.holds(run) for run in runs)
            print(f"interrupted: {done} of {len(runs)} runs are done, the same command goes on", file=sys.stderr)
            return 128 + runner.signals[0]
        if runner.failed:
            print(f"{len(runner.failed)} of {len(runs)} runs failed: {', '.join(runner.failed)}", file=sys.stderr)
            return 1
        results.add([run for run in every if run.state() == "done"], options.note)  # those of shards that just ended
    missing = sum(not results.holds(run) for run in every)
    if options.table and not results.runs:
        raise UsageError("no run is done yet: leave out --table to start them")
    if missing and not options.table:
        print(f"{missing} runs of other shards are not done: the last shard to end makes the table")
        return 0
    if missing:
        print(f"from {len(every) - missing} of {len(every)} runs:")
    show(results, options.columns)
    return 0


def gpus_for(device: str) -> list[str]:
    """Return the GPUs to spread runs over, as CUDA_VISIBLE_DEVICES names them; none where the device was chosen."""
    if device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(index) for index in range(count)])[:count]


def show(results: Results, columns: Sequence[str]) -> None:
    """Print the table and draw the plot of all runs in the result file."""
    path = results.path.with_suffix(".png")
    with results.locked():  # two shards may end at the same time
        drawn = plot(results.runs, path)
    print("\n".join(markdown(results.runs, columns)))
    print(f"written: {results.path}" + (f", {path.name}" if drawn else ""))
    if not drawn:
        print("no plot: matplotlib is not installed (pip install matplotlib)")


if __name__ == "__main__":
    sys.exit(main())
