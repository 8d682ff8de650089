"""The speed of Table 2's networks relative to the plain networks: training with 50 images, inference with 50 and 1."""

import gc
from argparse import Namespace

import torch

from benchmarks import contenders
from benchmarks.measuring import compare
from benchmarks.speed import make_step
from experiments.table2.counts import Row, table
from training.markdown import markdown_table
from training.report import origin

TASKS = {task: contenders.TASKS[task] for task in ("train 50", "infer 50", "infer 1")}  # images per step
PLAIN = "dense"  # the reference of measuring.compare


def measure(seconds: float, device: str) -> dict[str, object]:
    """Measure all rows; the rows of one network are measured in turns.

    Args:
        seconds: duration for each network and task.
        device: cpu or cuda.

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


def markdown(speed: dict | None) -> list[str]:
    """Return the lines of the table: milliseconds, and in brackets the speed relative to the plain network.

    Args:
        speed: the return value of :func:`measure`, or None if nothing has been measured.
    """
    if not speed:
        return ["Speed: not measured (--speed)."]
    cells = {(row["network"], row["task"]): row for row in speed["rows"]}
    rows = []
    for name in dict.fromkeys(row["network"] for row in speed["rows"]):
        here = [cells[name, task] for task in TASKS]
        rows.append([name, *("{milliseconds:.2f} ({ratio:.2f})".format(**cell) for cell in here)])
    made_by = speed["origin"]
    where = f"{made_by['device']}, {made_by['threads']} threads, torch {made_by['torch']}, {speed['precision']}"
    return [
        *markdown_table(["network", *TASKS], rows),
        "",
        f"Milliseconds, and speed against the plain network (above 1: faster), {where}.",
    ]
