"""Table 1 of the paper: its counts, and our accuracies next to the printed accuracies.

    python -m experiments.table1                       # counts: prints the table, writes results/table1_counts.json
    python -m experiments.table1 --train --name table1 --networks Base VGG11 --rows dense Lr LRr thinner-parameters \
        --seeds 0 1 2 --datasets cifar10 cifar100 --recipe fast --jobs 2 -- --batch-size 100
    python -m experiments.table1 --train ... -- --dataset imagefolder --data-root DIR    # labelled by DIR's name
    python -m experiments.table1 --train ... --dry-run                # lists the runs and their states
    python -m experiments.table1 --table --name table1                # accuracies of finished runs, next to the paper's

Training is a sweep over several scripts: the same command resumes it, and all runs are written to results/<name>.json.
Options after `--` apply to every run. Rows: dense; L, which is Lr without the regulariser; Lr; LRr; half-rank; sparse;
and the dense network with the parameters or the multiply-adds of Lr (see thinner.py).
"""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from itertools import product

from dataloaders import DATASETS, describe
from experiments.command_line import split_arguments
from experiments.paper import NETWORKS
from experiments.results import dataset_of, every_run
from experiments.sweep.command import add_sweep_options, carry_out, check_sweep_options
from experiments.sweep.plan import plan_run, script_parser, unique
from experiments.sweep.runner import Run
from experiments.table1 import accuracy, counts
from linearconv_variants import OneLineParser
from training.checkpoints import write_json
from training.errors import EXPECTED, UsageError, report_failure
from training.options import dataset_label, parse_arguments
from training.recipe import RECIPES
from training.report import ROOT, origin


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        if options.train:
            return carry_out(plan(options, extra), options, lambda results: show(options))
        if options.table:
            show(options)
        else:
            show_counts()
    except EXPECTED as error:
        return report_failure(error, "table1")
    return 0


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the command's own options, and the training options after `--`.

    Raises:
        SystemExit: with code 2 after one line on stderr.
    """
    parser = OneLineParser(
        prog="python -m experiments.table1", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", action="store_true", help="train the missing runs, then show the accuracies")
    add("--networks", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="default: all")
    add("--rows", choices=accuracy.ROWS, nargs="+", default=list(accuracy.ROWS), help="default: all")
    add("--datasets", choices=[name for name in DATASETS if name != "imagefolder"], nargs="+", help="default: cifar10")
    add("--recipe", choices=RECIPES, help="default: paper")
    add_sweep_options(parser)
    own, extra = split_arguments(argv)
    options = parser.parse_args(own)
    if options.train or options.table:
        check_sweep_options(parser, options, extra)
    elif argv:
        parser.error("give --train or --table with these options; without options the command counts")
    return options, extra


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of the table, sorted by seed; two rows with the same network share a run.

    Args:
        options: options of the command.
        extra: training options for every run.

    Raises:
        UsageError, SystemExit: for values that the training scripts reject.
    """
    shared = list(extra)
    if options.recipe:
        shared += ["--recipe", options.recipe]
    if options.epochs:
        shared += ["--epochs", str(options.epochs)]
    parsed = parse_arguments(script_parser(), shared)
    datasets, num_classes = {name: name for name in options.datasets or ["cifar10"]}, 10
    if parsed.dataset:
        label = dataset_label(parsed, parsed.dataset)
        if options.datasets not in (None, [label]):
            raise UsageError(f"--datasets asks for {' '.join(options.datasets)}, but behind -- stands {label}")
        num_classes = describe(parsed.dataset, parsed.data_root, parsed.image_size).num_classes
        datasets = {label: None}  # given after --
    runs = []
    for seed, label, name, row in product(options.seeds or [0], datasets, options.networks, options.rows):
        network = NETWORKS[name]
        script = ROOT / f"{network.__module__.replace('.', '/')}.py"
        words = accuracy.setting(name, row, label, num_classes).split()
        given = {"network": network.__name__, "dataset": datasets[label], "seed": seed}
        runs.append(plan_run(script, options.ckpt / options.name, words, shared, **given))
    return unique(runs)


def show(options: Namespace) -> None:
    """Print the accuracies of the chosen networks, rows and data sets.

    Raises:
        UsageError: if no such run is done.
    """
    runs = list(every_run(options.results, options.name))
    if options.datasets:
        runs = [run for run in runs if dataset_of(run) in options.datasets]
    if not runs:
        raise UsageError(f"{options.name} has no run of these yet: --train makes them")
    print("\n".join(accuracy.markdown(runs, options.networks, options.rows)))


def show_counts() -> None:
    """Count all networks, print the table, and write the result file."""
    rows = counts.count_rows()
    print("\n".join(counts.markdown(rows)))
    verdicts = [row[f"{figure}_verdict"] for row in rows for figure in ("parameters", "flops")]
    print(f"\n{verdicts.count('equal')} of {len(verdicts)} figures equal as printed")
    write_json(counts.RESULT, {"origin": origin(), "image": counts.IMAGE, "rows": rows})
    print(f"written: {counts.RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
