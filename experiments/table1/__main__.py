"""Table 1 of the paper: its counts, and our accuracies next to the printed accuracies.

    python -m experiments.table1                       # counts: prints the table, writes runs/table1_counts.json
    python -m experiments.table1 --train --name table1 --networks Base VGG11 --rows dense Lr LRr thinner-parameters \
        --seeds 0 1 2 --datasets cifar10 cifar100 --recipe fast --jobs 2 --batch-size 100
    python -m experiments.table1 --train ... -- --dataset imagefolder --data-root DIR    # labelled by DIR's name
    python -m experiments.table1 --train ... --dry-run                # lists the runs and their states
    python -m experiments.table1 --table --name table1                # accuracies of finished runs, next to the paper's

Training is a sweep over several scripts (see experiments.sweep). Other options, and options after `--`, apply to every
run. Rows: dense; L, which is Lr without the regulariser; Lr; LRr; half-rank; sparse; and the dense network with the
parameters or the multiply-adds of Lr (see thinner.py).
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from pathlib import Path

from dataloaders import DATASETS, describe
from experiments import paper
from experiments.results import every_run
from experiments.sweep.command import carry_out, parse_sweep, sweep_parser
from experiments.sweep.plan import plan_run, script_parser, shortest, unique
from experiments.sweep.runner import Run
from experiments.sweep.table import summarise, table, write_table
from experiments.table1 import counts
from experiments.thinner import macs_of, width_for
from linearconv import LinearConv
from training.checkpoints import write_json
from training.counting import count_parameters
from training.errors import EXPECTED, UsageError, report_failure
from training.options import dataset_label, parse_arguments
from training.report import ROOT, origin

ROWS = {  # options of the scripts
    "dense": "-t dense",
    "L": "-t rank -r 1 --reg-weight 0",
    "Lr": "-t rank -r 1",
    "LRr": "-t lowrank -r 10",
    "half-rank": "-t rank -r 0.5",
    "sparse": "-t sparse -s 0.25",
    "thinner-parameters": "-t dense --width {}",
    "thinner-macs": "-t dense --width {}",
}
NAMED = [name for name in DATASETS if name != "imagefolder"]
COLUMNS = {
    "row": "network",
    "dataset": "data",
    "parameters": "parameters",
    "macs_inference": "multiply-adds at inference",
    "accuracy": "test accuracy",
    "best": "best (epoch)",
    "against_dense": "against dense",
    "paper": "paper",
    "paper_against": "paper, against dense",
    "seeds": "seeds",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        if options.train:
            return carry_out(plan(options, extra), options, lambda results: show(options))
        if options.table:
            show(options)
        else:
            show_counts(options.results)
    except EXPECTED as error:
        return report_failure(error, "table1")
    return 0


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the command's own options, and the training options."""
    parser = sweep_parser("table1", __doc__, needs_name=False)
    add = parser.add_argument
    add("--train", action="store_true", help="train the missing runs, then show the accuracies")
    add("--networks", choices=paper.NETWORKS, nargs="+", default=list(paper.NETWORKS), help="default: all")
    add("--rows", choices=ROWS, nargs="+", default=list(ROWS), help="default: all")
    add("--datasets", choices=NAMED, nargs="+", help="default: cifar10")
    options, extra = parse_sweep(parser, argv)
    if (options.train or options.table) and not options.name:
        parser.error("the following arguments are required: --name")
    if not (options.train or options.table) and set(argv) - {"--results", str(options.results)}:
        parser.error("give --train or --table with these options; without options the command counts")
    return options, extra


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of the table, sorted by seed; two rows with the same network share a run."""
    shared = [*extra, "--epochs", str(options.epochs)] if options.epochs else extra
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
        network = paper.NETWORKS[name]
        script = ROOT / f"{network.__module__.replace('.', '/')}.py"
        variant, _, varied = setting(name, row, label, num_classes).partition(" --")
        words = variant.split(), f"--{varied}".split() if varied else []
        given = {"network": network.__name__, "dataset": datasets[label], "seed": seed}
        runs.append(plan_run(script, options.ckpt / options.name, *words, shared, **given))
    return unique(runs)


@cache
def setting(name: str, row: str, dataset: str, num_classes: int = 10) -> str:
    """Return the options with which a script trains a row of a network.

    The data set decides input channels and classes of a thinner network; for a data set that `dataloaders` does not
    know by name these are 3 and `num_classes`.
    """
    if "{}" not in ROWS[row]:
        return ROWS[row]
    shape = {"in_channels": 3, "num_classes": num_classes}
    if dataset in NAMED:
        info = describe(dataset)
        shape = {"in_channels": info.in_channels, "num_classes": info.num_classes}
    network = paper.NETWORKS[name]
    count = count_parameters if row == "thinner-parameters" else macs_of(shape["in_channels"])
    return ROWS[row].format(shortest(width_for(network, count(network(conv=LinearConv, **shape)), count, **shape)))


def compare(
    runs: Iterable[dict], names: Sequence[str] = tuple(paper.NETWORKS), rows: Sequence[str] = tuple(ROWS)
) -> list[dict]:
    """Return the measured rows of the table: of :func:`experiments.sweep.table.summarise`, with the paper's figures."""
    measured = {}  # by conditions and setting
    for row in summarise(runs):
        measured.setdefault(row["conditions"], {})[row["setting"]] = row
    networks = {paper.NETWORKS[name].__name__: name for name in names}
    found = []
    for (network, dataset, *_), settings in measured.items():
        name, num_classes = networks.get(network), next(iter(settings.values()))["num_classes"]
        printed = paper.accuracies(name, dataset)
        for row in rows if name else ():
            ours = settings.get(setting(name, row, dataset, num_classes))
            theirs = printed.get("Conv" if row == "dense" else f"-{row}")
            if not ours:
                continue
            ours |= {"row": f"{name}-{row}", "paper": None, "paper_against": None}
            if theirs is not None:
                ours |= {"paper": f"{theirs:.1f} %", "paper_against": f"{theirs - printed['Conv']:+.1f}"}
            if row == "dense":
                ours |= {"row": name, "against_dense": None, "paper_against": None}
            found.append(ours)
    return found


def show(options: Namespace) -> None:
    """Print and write the accuracies of the chosen networks, rows and data sets."""
    runs = list(every_run(options.results, options.name))
    if options.datasets:
        runs = [run for run in runs if run["report"]["dataset"] in options.datasets]
    groups, lines = {}, []
    for row in compare(runs, options.networks, options.rows):
        groups.setdefault((row["recipe"], row["epochs"]), []).append(row)
    if not groups:
        raise UsageError(f"{options.name} has no run of these in {options.results} yet: --train makes them")
    for (recipe, epochs), rows in groups.items():
        lines += [*table(rows, COLUMNS), ""]
        lines.append(f"Ours: {recipe} recipe, after {epochs} epochs; ± is the sample standard deviation over seeds.")
    print("\n".join(lines))
    if options.train:
        write_table(options.results / f"{options.name}.json", lines, runs)


def show_counts(results: Path) -> None:
    """Count all networks, print the table, and write the result file."""
    rows = counts.count_rows()
    print("\n".join(counts.markdown(rows)))
    verdicts = [row[f"{figure}_verdict"] for row in rows for figure in counts.FIGURES]
    print(f"\n{verdicts.count('equal')} of {len(verdicts)} figures equal as printed")
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "table1_counts.json", {"origin": origin(), "image": counts.IMAGE, "rows": rows})
    print(f"written: {results / 'table1_counts.json'}")


if __name__ == "__main__":
    sys.exit(main())
