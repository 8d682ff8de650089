"""Table 2 of the paper: LinearConv and other methods with few parameters or FLOPs, counted, trained and timed.

    python -m experiments.table2                    # count, and print with the measured accuracies and speeds
    python -m experiments.table2 --speed            # time all networks as well, for about five minutes

Counts and speeds are written to runs/table2.json; accuracies come from the sweeps in results/. The scripts
models/vgg_xcnn.py and models/squeezenet_xcnn.py train the rows; -t octave, basis, ghost and svd are the other methods.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from benchmarks.measuring import command_line
from benchmarks.speed import benchmark
from experiments.markdown import markdown_table
from experiments.results import RESULTS, USERS, comparable, describe, every_run, mean_over_seeds, read_json
from experiments.table1 import counts as table1_counts
from experiments.table2.counts import count_rows, table
from training.checkpoints import write_json
from training.errors import EXPECTED, report_failure
from training.report import origin

RESULT = RESULTS / "table2.json"
TASKS = ("train 50", "infer 50", "infer 1")
SECONDS = 45  # for each network and task
REMARKS = (
    "The paper's accuracies of the plain networks, and the differences to them of the others; * as reported by the "
    "method's authors. In its ImageNet column SqueezeNet's 71.4 cannot be top-1 accuracy on all of ImageNet, where "
    "public weights reach 58.1; VGG11's 70.2 agrees with public ones with BatchNorm, 70.4. The parameters that it "
    "prints are those for 10 classes."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    parser.prog = "python -m experiments.table2"
    add = parser.add_argument
    add("--speed", action="store_true", help="measure speed on --device too (default: keep the measured speeds)")
    add("--output", type=Path, default=USERS / "table2.json", help="default: runs/table2.json")
    options = parser.parse_args(argv)
    try:
        record = read_json(options.output if options.output.exists() else RESULT)
        record |= {"origin": origin(), "image": table1_counts.IMAGE, "rows": count_rows()}
        if options.speed:
            record["speed"] = measure_speed(options.device)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, record)
        print("\n".join(markdown(record, every_run())))
    except EXPECTED as error:
        return report_failure(error, "table2")
    print(f"written: {options.output}")
    return 0


def measure_speed(device: str) -> dict[str, object]:
    """Measure all rows, those of a network in turns, and compare them with its plain network.

    The `rows` are those of :func:`benchmarks.speed.benchmark`, whose `network` is the row's name.
    """
    options = Namespace(device=device, precision="float32", graphs=False, seconds=SECONDS)
    rows = []
    for network, task in product(dict.fromkeys(row.network for row in table()), TASKS):
        same = {"dense" if row.method == "Conv" else row.name: row for row in table() if row.network is network}
        builds = {name: row.build for name, row in same.items()}
        for measured in benchmark(network.__name__, builds, task, options):
            rows.append(measured | {"network": same[measured["contender"]].name})
    made_by = origin(device)
    return {"origin": made_by, "precision": options.precision, "memory_format": "channels_last", "rows": rows}


def markdown(record: dict, runs: Iterable[dict]) -> list[str]:
    """Return the lines of all three tables."""
    counts = table1_counts.markdown(record["rows"])
    return [*counts, "", *accuracy_table(runs), "", *speed_table(record.get("speed"))]


def accuracy_table(runs: Iterable[dict]) -> list[str]:
    """Return the lines of the table of accuracies on CIFAR-10 and of the paper's, with remarks below.

    The rows of a network come from comparable runs, with the same recipe and number of epochs: the group with most
    rows, and of these the one with most epochs.
    """
    groups = {}
    for conditions, methods in comparable(run for run in runs if run["report"]["dataset"] == "cifar10").items():
        rows = [row for row in table() if row.network.__name__ == conditions[0] and row.method in methods]
        groups[conditions] = {row.name: methods[row.method] for row in rows}
    chosen = {}  # conditions by network
    for conditions in sorted(filter(groups.get, groups), key=lambda key: (len(groups[key]), key[-1])):
        chosen[conditions[0]] = conditions
    measured, remarks = {}, []
    for conditions in sorted(chosen.values()):
        measured |= groups[conditions]
        remarks.append(f"{describe(conditions, map(len, groups[conditions].values()))}.")
    lines, plain = [], {}
    for row in table():
        accuracy, against, is_plain = "not measured", "", row.method == "Conv"
        if row.name in measured:
            mean, deviation = mean_over_seeds(measured[row.name])
            accuracy = f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
            if is_plain:  # the first row of its network
                plain[row.network] = mean
            elif row.network in plain:
                against = f"{mean - plain[row.network]:+.2f}"
        digits, mark = ".1f" if is_plain else "+.1f", "*" if row.as_reported else ""
        printed = [format(value, digits) + mark for value in row.accuracy] or ["-"] * 3
        lines.append([row.name, accuracy, against, *printed])
    lines = markdown_table(["network", "CIFAR-10, %", "against plain", "paper, CIFAR-10", "SVHN", "ImageNet"], lines)
    remarks = remarks or ["No sweep in results/ has runs of these networks."]
    return [*lines, "", *(f"{line}  " for line in ("Test accuracy after the last epoch:", *remarks, REMARKS))]


def speed_table(speed: dict | None) -> list[str]:
    """Return the lines of the table: milliseconds, and in brackets the speed relative to the plain network."""
    if not speed:
        return ["Speed: not measured (--speed)."]
    rows = {}
    for row in speed["rows"]:
        rows.setdefault(row["network"], [row["network"]]).append("{milliseconds:.2f} ({ratio:.2f})".format(**row))
    made_by = speed["origin"]
    where = f"{made_by['device']}, {made_by['threads']} threads, torch {made_by['torch']}, {speed['precision']}"
    table = markdown_table(["network", *TASKS], rows.values())
    return [*table, "", f"Milliseconds, and speed against the plain network (above 1: faster), {where}."]


if __name__ == "__main__":
    sys.exit(main())
