"""The tables of what benchmarks/speed.py has measured: ratios of speeds to dense, above 1 where ours is faster."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import CONDITIONS, TASKS

SHOWN = ("full rank, auto", "rank 10, auto", "full rank, paper")  # in the summary
OURS = (*SHOWN[:2], "half rank, auto", "sparse, auto")
NOT_SLOWER = 0.97  # of dense, within what measurements scatter by
MARKS = "<!-- benchmarks/speed.py --readme, {} -->", "<!-- end -->"  # {}: a file in results/


def markdown(rows: Sequence[dict]) -> list[str]:
    """Return all ratios to dense: a line per network and contender, a column per task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [
        f"| network | contender | {' | '.join(tasks)} | multiply-add limit |",
        f"| --- | --- | {' | '.join('---:' for _ in tasks)} | ---: |",
    ]
    cells = _cells(rows)
    for network, contender in dict.fromkeys((row["network"], row["contender"]) for row in rows):
        found = [cells.get((network, contender, task)) for task in tasks]
        ratios = [f"{row['ratio']:.2f}" if row else "" for row in found]
        limit = next(row for row in found if row).get("mac_limit")
        lines.append(f"| {network} | {contender} | {' | '.join(ratios)} | {f'{limit:.2f}' if limit else ''} |")
    return lines


def summary(rows: Sequence[dict]) -> list[str]:
    """Return a line per network: ratios to dense of `auto`, full rank / rank 10 (full rank in the paper's way)."""
    cells = _cells(rows)
    tasks = [task for task in TASKS if task not in CONDITIONS and any(row["task"] == task for row in rows)]
    lines = [f"| network | {' | '.join(tasks)} | multiply-add limit | peak memory, train 50 |"]
    lines += ["| --- |" + " ---: |" * (len(tasks) + 2)]
    for network in dict.fromkeys(row["network"] for row in rows):
        shown = []
        for task in tasks:
            found = [cells.get((network, name, task)) for name in SHOWN]
            ratios = [f"{row['ratio']:.2f}" if row else "-" for row in found]
            shown.append("{} / {} ({})".format(*ratios))
        limits = [f"{cells[network, name, tasks[0]]['mac_limit']:.2f}" for name in SHOWN[:2]]
        dense = cells[network, "dense", "train 50"]["peak_bytes"]
        memory = [f"{cells[network, name, 'train 50']['peak_bytes'] / dense:.2f}" for name in SHOWN]
        shown += [" / ".join(limits), f"{memory[0]} / {memory[1]} ({memory[2]})"]
        lines.append(f"| {network} | {' | '.join(shown)} |")
    return lines


def conditions(rows: Sequence[dict]) -> list[str]:
    """Return a line per network: ratios to dense of full rank, `auto`, in batches of 8 under each of `CONDITIONS`."""
    cells = _cells(rows)
    lines = [f"| network | {' | '.join(CONDITIONS)} |", "| --- |" + " ---: |" * len(CONDITIONS)]
    for network in dict.fromkeys(row["network"] for row in rows if row["task"] in CONDITIONS):
        ratios = [cells[network, SHOWN[0], task]["ratio"] for task in CONDITIONS]
        lines.append(f"| {network} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return lines


def slower(rows_by_precision: dict[str, Sequence[dict]]) -> list[str]:
    """Return a line per precision, network and task in which a variant, `auto`, is below `NOT_SLOWER`."""
    lines = [f"| precision | network | task | {' | '.join(name.removesuffix(', auto') for name in OURS)} |"]
    lines += ["| --- | --- | --- |" + " ---: |" * len(OURS)]
    for precision, rows in rows_by_precision.items():
        cells = _cells(rows)
        for network, task in dict.fromkeys((row["network"], row["task"]) for row in rows):
            ratios = [round(cells[network, name, task]["ratio"], 2) for name in OURS]
            if min(ratios) < NOT_SLOWER:
                shown = [f"**{ratio:.2f}**" if ratio < NOT_SLOWER else f"{ratio:.2f}" for ratio in ratios]
                lines.append(f"| {precision} | {network} | {task} | {' | '.join(shown)} |")
    return lines


def eager_and_captured(eager: Sequence[dict], captured: Sequence[dict]) -> list[str]:
    """Return a line per network: ratios to dense of full rank, `auto`, as PyTorch runs it / replayed as a CUDA graph.

    Args:
        eager, captured: the rows of `speed_<device>_<precision>.json` and `..._graphs.json`.
    """
    both = [_cells(rows) for rows in (eager, captured)]
    tasks = {task for cells in both for _, _, task in cells}
    tasks = sorted(tasks, key=lambda task: (task.startswith("infer"), TASKS[task]))
    lines = [f"| network | {' | '.join(tasks)} |", "| --- |" + " ---: |" * len(tasks)]
    for network in dict.fromkeys(row["network"] for row in captured):
        found = [[cells.get((network, SHOWN[0], task)) for cells in both] for task in tasks]
        shown = [" / ".join(f"{row['ratio']:.2f}" if row else "-" for row in pair) for pair in found]
        lines.append(f"| {network} | {' | '.join(shown)} |")
    return lines


def _cells(rows):
    return {(row["network"], row["contender"], row["task"]): row for row in rows}


def into_readme(text: str, results: Path) -> str:
    """Return a page's text with the summaries of all results between their marks."""
    for path in sorted(results.glob("speed_*.json")):
        start = MARKS[0].format(path.name)
        if start in text:
            before, _, after = text.partition(start)
            table = "\n".join(summary(json.loads(path.read_text())["rows"]))
            text = before + start + "\n" + table + "\n" + MARKS[1] + after.partition(MARKS[1])[2]
    return text
