"""The tables of a compression study: accuracy lost against dense for each way and size, then sizes and speeds.

python -m experiments.compress ... --table
"""

import math
import statistics
from collections.abc import Sequence

from experiments.markdown import markdown_table
from training.recipe import TUNE

AT_ONCE, FROM_SCRATCH = "at once", "from scratch"
NAMES = {  # of a unit's way, or of the type of a network from scratch
    "linearconv": "LinearConv",
    "svd": "SVD pair",
    "spatial": "spatial SVD",
    "tucker": "Tucker",
    "pruning": "channel pruning",
    "dense": "dense",
}
SCRATCH_NAMES = {"rank": "LinearConv", "dense": "thinner dense", "ghost": "Ghost modules"}


def losses(runs: Sequence[dict]) -> tuple[dict[str, dict[float, list[float]]], float]:
    """Return the accuracy that each way loses against the dense network of the same seed, and its mean accuracy.

    Returns:
        `({way: {size: [points lost, one per seed]}}, accuracy of the dense networks)`; a way is, for example,
        `LinearConv, 2 epochs, teacher`, and the size is the share of parameters that was asked for.
    """
    dense = {run["report"]["seed"]: run["report"] for run in runs if run["setting"] == "-t dense"}
    reports = [run["report"] for run in runs if run["setting"] != "-t dense"]
    budgets = {report["budget"] for report in reports if report.get("way", "dense") != "dense"}
    found: dict[str, dict[float, list[float]]] = {}
    for report in reports:
        reference = dense.get(report["seed"])
        if reference is None:
            continue
        size = report.get("budget")
        if size is None:  # a network from scratch
            share = report["parameters"] / reference["parameters"]
            size = min(budgets, key=lambda budget: abs(budget - share), default=share)  # noqa: B023
        lost = reference["test_accuracy"] - report["test_accuracy"]
        found.setdefault(name_of_way(report), {}).setdefault(size, []).append(lost)
    accuracies = [report["test_accuracy"] for report in dense.values()]
    return found, statistics.fmean(accuracies) if accuracies else math.nan


def name_of_way(report: dict) -> str:
    """Return the name of the way of a report, with its training."""
    if "way" not in report:
        return f"{SCRATCH_NAMES[report['type']]} {FROM_SCRATCH}, {report['epochs']} epochs"
    if not report["epochs"]:
        return f"{NAMES[report['way']]}, {AT_ONCE}"
    rate = f", lr {report['tune_lr']:g}" if report.get("tune_lr", TUNE.lr) != TUNE.lr else ""
    teacher = ", teacher" if report["teacher"] else ""
    return f"{NAMES[report['way']]}, {report['epochs']} epochs{rate}{teacher}"


def mean_lost(lost: Sequence[float]) -> str:
    """Return the mean of the points lost over seeds, as text."""
    return f"{round(statistics.fmean(lost), 2) + 0.0:.2f}"  # + 0.0: not -0.00


def markdown(runs: Sequence[dict]) -> list[str]:
    """Return the lines of both tables."""
    return [*markdown_of_losses(runs), "", *sizes_and_speeds(runs)]


def markdown_of_losses(runs: Sequence[dict]) -> list[str]:
    """Return the lines of the table of losses; see :func:`least_lost` for the bold cells."""
    found, accuracy = losses(runs)
    sizes = sorted({size for by_size in found.values() for size in by_size}, reverse=True)
    winners, rows = least_lost(found), []
    for way in sorted(found, key=lambda way: (FROM_SCRATCH in way, AT_ONCE not in way, training_of(way))):
        row = [way]
        for size in sizes:
            lost = found[way].get(size, [])
            deviation = f" ± {statistics.stdev(lost):.2f}" if len(lost) > 1 else ""
            cell = f"{mean_lost(lost)}{deviation}" if lost else ""
            row.append(f"**{cell}**" if (way, size) in winners else cell)
        rows.append(row)
    seeds = max((len(lost) for by_size in found.values() for lost in by_size.values()), default=0)
    over = f"mean over up to {seeds} seeds" if seeds > 1 else "one seed"
    lines = [f"Points of test accuracy lost against dense ({accuracy:.2f} %); {over}.", ""]
    return lines + markdown_table(["way", *(f"{100 * size:g} %" for size in sizes)], rows)


def least_lost(found: dict[str, dict[float, list[float]]]) -> set[tuple[str, float]]:
    """Return (way, size) of each way that loses least among the ways with the same size, training and number of seeds.

    There is no least loss for a single way, and none until all these ways have the same number of seeds.
    """
    rivals: dict[tuple[str, float], dict[str, list[float]]] = {}
    for way, by_size in found.items():
        for size, lost in by_size.items():
            rivals.setdefault((training_of(way), size), {})[way] = lost
    winners = set()
    for (_, size), each in rivals.items():
        if len(each) > 1 and len(set(map(len, each.values()))) == 1:
            least = min(map(statistics.fmean, each.values()))
            winners |= {(way, size) for way, lost in each.items() if statistics.fmean(lost) == least}
    return winners


def training_of(way: str) -> str:
    """Return the training in the name of a way: `at once`, `2 epochs, teacher`."""
    return way.partition(", ")[2]


def sizes_and_speeds(runs: Sequence[dict]) -> list[str]:
    """Return the lines of the table of sizes and speeds, for the networks at once."""
    groups: dict[tuple[float, str], list[dict]] = {}
    for report in (run["report"] for run in runs):
        if "speed" in report:
            groups.setdefault((report["budget"], NAMES[report["way"]]), []).append(report)
    rows = []
    for (size, name), reports in sorted(groups.items(), reverse=True):
        row = [name, f"{100 * size:g} %"]
        for key in ("parameters", "macs_inference"):
            row.append(f"{statistics.fmean(report[key] for report in reports):,.0f}")
        for runtime in ("torch", "onnxruntime"):
            speeds = [report["speed"][runtime] for report in reports if runtime in report["speed"]]
            row.append(f"{statistics.median(speeds):.2f}" if speeds else "not measured")
        rows.append(row)
    header = ["way", "size", "parameters", "multiply-adds", "speed, torch", "speed, onnxruntime"]
    return markdown_table(header, rows)
