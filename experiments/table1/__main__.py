"""Table 1 of the paper: its counts, and our accuracies next to the printed accuracies.

    python -m experiments.table1                       # counts: prints the table, writes runs/table1_counts.json
    python -m experiments.table1 --train --name table1 --networks Base VGG11 --rows dense Lr LRr thinner-parameters \
        --seeds 0 1 2 --datasets cifar10 cifar100 --recipe fast --jobs 2 --batch-size 100
    python -m experiments.table1 --train ... -- --dataset imagefolder --data-root DIR    # labelled by DIR's name
    python -m experiments.table1 --train ... --dry-run                # lists the runs and their states
    python -m experiments.table1 --table --name table1                # accuracies of finished runs, next to the paper's

Training is a sweep over several scripts: the same command resumes it, and all runs are written to runs/<name>.json.
Other options, and options after `--`, apply to every run. Rows: dense; L, which is Lr without the regulariser; Lr; LRr;
half-rank; sparse; and the dense network with the parameters or the multiply-adds of Lr (see thinner.py).
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from itertools import product

from dataloaders import DATASETS, describe
from experiments.paper import NETWORKS
from experiments.results import dataset_of, every_run
from experiments.sweep.command import carry_out, parse_sweep, sweep_parser
from experiments.sweep.plan import plan_run, script_parser, unique
from experiments.sweep.runner import Run
from experiments.sweep.table import write_table
from experiments.table1 import accuracy, counts
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
            show_counts(options)
    except EXPECTED as error:
        return report_failure(error, "table1")
    return 0


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the command's own options, and the training options."""
    parser = sweep_parser("table1", __doc__, needs_name=False)
    add = parser.add_argument
    add("--train", action="store_true", help="train the missing runs, then show the accuracies")
    add("--networks", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="default: all")
    add("--rows", choices=accuracy.ROWS, nargs="+", default=list(accuracy.ROWS), help="default: all")
    add("--datasets", choices=[name for name in DATASETS if name != "imagefolder"], nargs="+", help="default: cifar10")
    add("--recipe", choices=RECIPES, help="default: paper")
    options, extra = parse_sweep(parser, argv)
    if (options.train or options.table) and not options.name:
        parser.error("the following arguments are required: --name")
    if not (options.train or options.table) and set(argv) - {"--results", str(options.results)}:
        parser.error("give --train or --table with these options; without options the command counts")
    return options, extra


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of the table, sorted by seed; two rows with the same network share a run."""
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
            raise UsageError(f"--datasets asks for {' '.join(options.datasets)}, but --dataset gives {label}")
        num_classes = describe(parsed.dataset, parsed.data_root, parsed.image_size).num_classes
        datasets = {label: None}  # given for every run
    runs = []
    for seed, label, name, row in product(options.seeds or [0], datasets, options.networks, options.rows):
        network = NETWORKS[name]
        script = ROOT / f"{network.__module__.replace('.', '/')}.py"
        variant, _, varied = accuracy.setting(name, row, label, num_classes).partition(" --")
        words = variant.split(), f"--{varied}".split() if varied else []
        given = {"network": network.__name__, "dataset": datasets[label], "seed": seed}
        runs.append(plan_run(script, options.ckpt / options.name, *words, shared, **given))
    return unique(runs)


def show(options: Namespace) -> None:
    """Print and write the accuracies of the chosen networks, rows and data sets."""
    runs = list(every_run(options.results, options.name))
    if options.datasets:
        runs = [run for run in runs if dataset_of(run) in options.datasets]
    if not runs:
        raise UsageError(f"{options.name} has no run of these in {options.results} yet: --train makes them")
    lines = accuracy.markdown(runs, options.networks, options.rows)
    print("\n".join(lines))
    if options.train:
        write_table(options.results / f"{options.name}.json", lines, runs)


def show_counts(options: Namespace) -> None:
    """Count all networks, print the table, and write the result file."""
    rows = counts.count_rows()
    print("\n".join(counts.markdown(rows)))
    verdicts = [row[f"{figure}_verdict"] for row in rows for figure in counts.FIGURES]
    print(f"\n{verdicts.count('equal')} of {len(verdicts)} figures equal as printed")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "table1_counts.json"
    write_json(path, {"origin": origin(), "image": counts.IMAGE, "rows": rows})
    print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
