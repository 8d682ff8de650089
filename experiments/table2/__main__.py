"""Table 2 of the paper: LinearConv and other methods with few parameters or FLOPs, counted, trained and timed.

    python -m experiments.table2                    # count, and print with the measured accuracies and speeds
    python -m experiments.table2 --speed            # time all networks as well, for about five minutes

Counts and speeds are written to runs/table2.json; accuracies come from the sweeps in results/. The scripts
models/vgg_xcnn.py and models/squeezenet_xcnn.py train the rows; -t octave, basis, ghost and svd are the other methods.
"""

import gc
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks import contenders
from benchmarks.measuring import command_line, compare
from benchmarks.speed import make_step
from experiments.markdown import markdown_table
from experiments.results import RESULTS, USERS, NoResults, every_run, read_json
from experiments.table1 import counts as table1_counts
from experiments.table2 import accuracy
from experiments.table2.counts import Row, count_rows, table
from linearconv_variants import positive_float
from training.checkpoints import write_json
from training.errors import EXPECTED, report_failure
from training.report import origin

RESULT = RESULTS / "table2.json"
TASKS = {task: contenders.TASKS[task] for task in ("train 50", "infer 50", "infer 1")}  # images per step
PLAIN = "dense"  # the reference of measuring.compare


def measure_speed(seconds: float, device: str) -> dict[str, object]:
    """Measure all rows; the rows of one network are measured in turns.

    Returns:
        `origin`, `precision`, and `rows` with `network` (the row's name), `task`, `images_per_second` and what
        :func:`benchmarks.measuring.compare` returns: `milliseconds`, `ratio` and so on.
    """
    options = Namespace(device=device, precision="float32")
    rows = []
    for network in dict.fromkeys(row.network for row in table()):
        same = {PLAIN if row.is_plain else row.name: row for row in table() if row.network is network}
        for task, images in TASKS.items():
            gc.collect()  # free the previous networks
            timed = compare({key: _step(row, task, options) for key, row in same.items()}, seconds, device)
            for key, compared in timed.items():
                speed = {"images_per_second": 1e3 * images / compared["milliseconds"]}
                rows.append({"network": same[key].name, "task": task, **compared, **speed})
    made_by = origin(device)
    return {"origin": made_by, "precision": options.precision, "memory_format": "channels_last", "rows": rows}


def _step(row: Row, task, options):
    torch.manual_seed(0)
    return make_step(row.build(), task, options)


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


def markdown(record: dict, runs: Iterable[dict]) -> list[str]:
    """Return the lines of all three tables."""
    counts = table1_counts.markdown(record["rows"])
    return [*counts, "", *accuracy.markdown(runs), "", *speed_table(record.get("speed"))]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    parser.prog = "python -m experiments.table2"
    add = parser.add_argument
    add("--speed", action="store_true", help="measure speed on --device too (default: keep the measured speeds)")
    add("--seconds", type=positive_float, default=45, help="for each network and task (default: 45)")
    add("--output", type=Path, default=USERS / "table2.json", help="default: runs/table2.json")
    options = parser.parse_args(argv)
    try:
        try:
            record = read_json(options.output if options.output.exists() else RESULT)
        except NoResults:
            record = {}
        record |= {"origin": origin(), "image": table1_counts.IMAGE, "rows": count_rows()}
        if options.speed:
            record["speed"] = measure_speed(options.seconds, options.device)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, record)
        print("\n".join(markdown(record, every_run())))
    except EXPECTED as error:
        return report_failure(error, "table2")
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
