"""The tables of a compression study: accuracy lost against dense for each way and size, then sizes and speeds.

python -m experiments.compress ... --table
"""

import statistics
from collections.abc import Sequence

from training.markdown import markdown_table

FROM_SCRATCH = {"rank": "LinearConv", "dense": "thinner dense", "ghost": "Ghost modules"}  # by type
NAMES = {
    "linearconv": "LinearConv",
    "svd": "SVD pair",
    "spatial": "spatial SVD",
    "tucker": "Tucker",
    "pruning": "channel pruning",
    "dense": "dense, trained on",
}


def losses(runs: Sequence[dict]) -> tuple[dict[str, dict[float, list[float]]], float]:
    """Return the accuracy that each way loses against the dense network of the same seed, and its mean accuracy.

    Returns:
        `({way: {size: [points lost, one per seed]}}, accuracy of the dense networks)`; a way is, for example,
        `LinearConv, 2 epochs, teacher`, and the size is the share of parameters that was asked for.
    """
    dense, found = {}, {}
    for run in runs:
        if run["setting"] == "-t dense":
            dense[run["report"]["seed"]] = run["report"]
    sizes = sorted({run["report"]["budget"] for run in runs if "way" in run["report"]} - {1.0})
    for run in runs:
        report = run["report"]
        reference = dense.get(report["seed"])
        if run["setting"] == "-t dense" or reference is None:
            continue
        if "way" in report:
            name, size = NAMES[report["way"]], report["budget"]
            accuracies = {f"{name}, {title}": accuracy for title, accuracy in report["tuned"].items()}
            if report["way"] != "dense":
                accuracies[f"{name}, at once"] = report["test_accuracy"]
        else:
            share = report["parameters"] / reference["parameters"]
            size = min(sizes or [share], key=lambda size: abs(size - share))
            name = f"{FROM_SCRATCH[report['type']]} from scratch, {report['epochs']} epochs"
            accuracies = {name: report["test_accuracy"]}
        for way, accuracy in accuracies.items():
            lost = reference["test_accuracy"] - accuracy
            found.setdefault(way, {}).setdefault(size, []).append(lost)
    accuracies = [report["test_accuracy"] for report in dense.values()]
    return found, statistics.fmean(accuracies) if accuracies else float("nan")


def markdown(runs: Sequence[dict]) -> list[str]:
    """Return the lines of both tables; the least loss at each size, at once and trained further, is bold."""
    found, accuracy = losses(runs)
    sizes = sorted({size for ways in found.values() for size in ways}, reverse=True)
    order = sorted(found, key=lambda way: ("scratch" in way, not way.endswith("at once"), way.partition(", ")[2]))
    rows = []
    for way in order:
        row = [way]
        for size in sizes:
            values = found[way].get(size)
            rivals = [other for other in found if other.endswith("at once") == way.endswith("at once")]
            least = (
                min(statistics.fmean(found[other][size]) for other in rivals if size in found[other]) if values else 0
            )
            row.append(_cell(values, least))
        rows.append(row)
    header = ["way", *(f"{100 * size:g} %" for size in sizes)]
    seeds = max((len(values) for ways in found.values() for values in ways.values()), default=0)
    lines = [f"Points of test accuracy lost against dense ({accuracy:.2f} %); mean over up to {seeds} seeds.", ""]
    lines += [*markdown_table(header, rows), ""]
    groups = {}
    for run in runs:
        report = run["report"]
        if "way" in report and report["way"] != "dense":
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
    return lines + markdown_table(header, rows)


def _cell(values, least):
    """Return the mean of points lost and its deviation, bold for the least mean."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    text = f"{mean:.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
    return f"**{text}**" if mean <= least else text
