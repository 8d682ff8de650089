"""Code shared by the commands that run sweeps: their options, and the steps from a plan to its results."""

import re
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.results import USERS
from experiments.sweep.runner import CORES_PER_JOB, Results, Run, Runner
from linearconv_variants import OneLineParser, positive_int
from training.errors import UsageError
from training.report import ROOT

GIVEN_BY_SWEEP = {"--network", "--output", "--resume", "--count-only"}


def sweep_parser(name: str, description: str, needs_name: bool = True) -> OneLineParser:
    """Return a parser of the command `experiments.<name>`, with the options of all commands that run sweeps."""
    parser = OneLineParser(
        f"python -m experiments.{name}",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --dataset is the script's option, not a part of --datasets
    )
    add = parser.add_argument
    add("--name", required=needs_name, help="name of the sweep, of its folder in ckpt/ and of its files in runs/")
    add("--seeds", type=int, nargs="+", help="default: 0")
    add("--epochs", type=positive_int, help="default: the epochs of the recipe")
    add("--note", help="description of the data, kept in the result")
    add("--jobs", type=positive_int, help=f"runs side by side (default: one per GPU, or per {CORES_PER_JOB} cores)")
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help="run the I-th of N shares only")
    add("--dry-run", action="store_true", help="list the runs and their states")
    add("--table", action="store_true", help="run nothing: show the finished runs")
    add("--ckpt", type=Path, default=ROOT / "ckpt", metavar="DIR", help="folder of the runs (default: ckpt)")
    add("--results", type=Path, default=USERS, metavar="DIR", help="folder of the result (default: runs)")
    return parser


def parse_sweep(parser: OneLineParser, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the command's own options, and training options for every run: unknown ones, and all after `--`."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    options, unknown = parser.parse_known_args(argv[:split])
    extra = [*unknown, *argv[split + 1 :]]
    if options.name and not re.fullmatch(r"\w[\w.-]*", options.name):
        parser.error(f"--name must be a plain file name, got {options.name!r}")
    if taken := GIVEN_BY_SWEEP & {word.split("=")[0] for word in extra}:
        parser.error(f"{' '.join(sorted(taken))} cannot be given: the sweep gives each run its own")
    return options, extra


def shard(text: str) -> tuple[int, int]:
    """Return (i, n) of `i/n`, for argparse."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text}")
    return int(match[1]), int(match[2])


def carry_out(every: Sequence[Run], options: Namespace, show: Callable[[Results], object], **kept: object) -> int:
    """List, run or show the runs of a plan; return the exit code.

    When all runs are done, and for --table, `show` is called with the results. `kept` are more entries of their file.
    """
    results = Results(options.results / f"{options.name}.json", every, **kept)
    states = {run.name: "done" if results.holds(run) else run.state() for run in every}
    runs = every[options.shard[0] - 1 :: options.shard[1]]
    if options.dry_run:
        for run in runs:
            print(f"{'running' if run.is_running() else states[run.name]:12s} {run.name:40s} {run.command}")
        return 0
    results.add([run for run in every if states[run.name] == "done"], options.note)
    if options.table and not results.runs:
        raise UsageError("no run is done yet: leave out --table to start them")
    if not options.table:
        if code := Runner(runs, results, options.jobs).go():
            return code
        results.add([run for run in every if run.state() == "done"])  # shards that have just ended
    missing = sum(not results.holds(run) for run in every)
    if missing and not options.table:
        print(f"{missing} runs of other shards are not done: the last shard to end makes the table")
    else:
        print(f"from {len(every) - missing} of {len(every)} runs:")
        show(results)
    return 0
