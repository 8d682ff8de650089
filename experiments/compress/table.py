"""The tables of a compression study: accuracy lost against dense for each way and size, then sizes and speeds.

python -m experiments.compress ... --table
"""

import math
import statistics
from collections.abc import Sequence

from experiments.markdown import markdown_table

AT_ONCE, FURTHER = "at once", "from scratch"
FROM_SCRATCH = {"rank": "LinearConv", "dense": "thinner dense", "ghost": "Ghost modules"}  # by type
NAMES = {
    "linearconv": "LinearConv",
    "svd": "SVD pair",
    "spatial": "spatial SVD",
    "tucker": "Tucker",
    "pruning": "channel pruning",
    "dense": "dense",
}


def losses(runs: Sequence[dict]) -> tuple[dict[str, dict[float, list[float]]], float]:
    """Return the accuracy that each way loses against the dense network of the same seed, and its mean accuracy.

    Returns:
        `({way: {size: [points lost, one per seed]}}, accuracy of the dense networks)`; a way is, for example,
        `LinearConv, 2 epochs, teacher`, and the size is the share of parameters that was asked for.
    """
    dense = {run["report"]["seed"]: run["report"] for run in runs if run["setting"] == "-t dense"}
    sizes = {run["report"]["budget"] for run in runs if run["report"].get("way", "dense") != "dense"}
    found = {}
    for run in runs:
        report = run["report"]
        reference = dense.get(report["seed"])
        if run["setting"] == "-t dense" or reference is None:
            continue
        if "way" in report:
            tuned = f"{report['epochs']} epochs" + (", teacher" if report["teacher"] else "")
            way, size = f"{NAMES[report['way']]}, {tuned if report['epochs'] else AT_ONCE}", report["budget"]
        else:
            share = report["parameters"] / reference["parameters"]
            size = min(sizes or [share], key=lambda size: abs(size - share))  # noqa: B023
            way = f"{FROM_SCRATCH[report['type']]} from scratch, {report['epochs']} epochs"
        lost = reference["test_accuracy"] - report["test_accuracy"]
        found.setdefault(way, {}).setdefault(size, []).append(lost)
    return found, statistics.fmean(report["test_accuracy"] for report in dense.values()) if dense else math.nan


def markdown(runs: Sequence[dict]) -> list[str]:
    """Return the lines of both tables; the least loss at each size, at once and trained further, is bold."""
    found, accuracy = losses(runs)
    sizes = sorted({size for ways in found.values() for size in ways}, reverse=True)
    rows = []
    for way in sorted(found, key=lambda way: (FURTHER in way, AT_ONCE not in way, way.partition(", ")[2])):
        row = [way]
        for size in sizes:
            rivals = [
                found[other][size] for other in found if (AT_ONCE in other) == (AT_ONCE in way) and size in found[other]
            ]
            row.append(_cell(found[way].get(size), min(map(statistics.fmean, rivals), default=0)))
        rows.append(row)
    seeds = max((len(values) for ways in found.values() for values in ways.values()), default=0)
    lines = [f"Points of test accuracy lost against dense ({accuracy:.2f} %); mean over up to {seeds} seeds.", ""]
    lines += [*markdown_table(["way", *(f"{100 * size:g} %" for size in sizes)], rows), ""]
    groups = {}
    for run in runs:
        if "speed" in run["report"]:
            groups.setdefault((run["report"]["budget"], NAMES[run["report"]["way"]]), []).append(run["report"])
    rows = []
    for (size, name), reports in sorted(groups.items(), reverse=True):
        row = [name, f"{100 * size:g} %"]
        row += [
            f"{statistics.fmean(report[key] for report in reports):,.0f}" for key in ("parameters", "macs_inference")
        ]
        for runtime in ("torch", "onnxruntime"):
            speeds = [report["speed"][runtime] for report in reports if runtime in report["speed"]]
            row.append(f"{statistics.median(speeds):.2f}" if speeds else "not measured")
        rows.append(row)
    header = ["way", "size", "parameters", "multiply-adds", "speed, torch", "speed, onnxruntime"]
    return lines + markdown_table(header, rows)


def _cell(values, least):
    """Return the mean of points lost and its deviation, bold for the least mean."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    text = f"{mean:.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
    return f"**{text}**" if mean <= least else text
