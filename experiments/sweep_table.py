"""What a sweep ends in: a table and a plot of accuracy against parameters and FLOPs, over seeds.

    python -m experiments.sweep ... --table

Both are made from the runs in results/<name>.json. Accuracy is that after the last epoch, not the best one, which would
be chosen on the test images. Mean and sample standard deviation (divided by n - 1) are over the seeds of a setting.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from training.files import write_whole

COUNTS = {
    "parameters": "parameters",
    "nonzero_parameters": "of them not pruned",
    "flops_paper": "FLOPs, the paper's convention",
    "macs_inference": "multiply-adds at inference",
}
AXES = {"nonzero_parameters": "parameters that are not pruned"} | {
    key: COUNTS[key] for key in ("flops_paper", "macs_inference")
}
COLUMNS = {  # of the table: title
    "dataset": "data",
    "network": "network",
    "setting": "setting",
    **COUNTS,
    "accuracy": "test accuracy",
    "last_ten": "mean of the last ten epochs",
    "best": "best (epoch)",
    "against_dense": "against dense",
    "seeds": "seeds",
}
USUAL_COLUMNS = ("dataset", "network", "setting", *COUNTS, "accuracy", "seeds")
LEFT_ALIGNED = ("dataset", "network", "setting")


def over_seeds(runs: Sequence[dict]) -> list[dict]:
    """Summarise the runs of a result file.

    Returns:
        A row per data set, network and setting: the counts, the number of `seeds`, and as (mean, deviation), in per
        cent, `accuracy` after the last epoch, `last_ten`, the mean of the last ten epochs (None after fewer),
        and `best`; a deviation of one seed is None. `against_dense` is the difference of mean accuracies to the dense
        network's, None where there is none: to the one with the same further options, else to the one without any.
    """
    groups = {}
    for run in runs:
        report = run["report"]
        dataset = run.get("dataset") or report["dataset"]
        groups.setdefault((dataset, report["architecture"], run["setting"]), []).append(run)
    rows = []
    for (dataset, network, setting), same in groups.items():
        reports, logs = [run["report"] for run in same], [run["log"][-10:] for run in same]
        row = {"dataset": dataset, "network": network, "setting": setting, "seeds": len(same)}
        row["varied"] = same[0].get("varied", "")
        row |= {key: reports[0][key] for key in ("type", "rank", "sparsity", "alpha")}
        row |= {key: round(statistics.fmean(report[key] for report in reports)) for key in COUNTS}
        row["accuracy"] = _mean_and_deviation([report["test_accuracy"] for report in reports])
        row["best"] = _mean_and_deviation([report["best_test_accuracy"] for report in reports])
        row["best_epochs"] = sorted({report["best_epoch"] for report in reports})
        last_ten = [statistics.fmean(record["test_accuracy"] for record in log) for log in logs if len(log) == 10]
        row["last_ten"] = _mean_and_deviation(last_ten) if len(last_ten) == len(same) else None
        rows.append(row)
    dense = {(row["dataset"], row["network"], row["varied"]): row for row in rows if row["type"] == "dense"}
    for row in rows:
        plain, same = (dense.get((row["dataset"], row["network"], varied)) for varied in ("", row["varied"]))
        reference = (plain or same) if row["type"] == "dense" else (same or plain)
        row["against_dense"] = None if reference is None else row["accuracy"][0] - reference["accuracy"][0]
    return sorted(rows, key=lambda row: (row["dataset"], row["network"]))  # settings stay in the sweep's order


def _mean_and_deviation(values):
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def markdown(runs: Sequence[dict], columns: Sequence[str] = USUAL_COLUMNS) -> list[str]:
    """Return the table's lines, one per row of :func:`over_seeds`.

    Args:
        runs: of a result file.
        columns: keys of `COLUMNS`.
    """
    lines = [[COLUMNS[key] for key in columns]]
    lines += [["---" if key in LEFT_ALIGNED else "---:" for key in columns]]
    lines += [[_cell(row, key) for key in columns] for row in over_seeds(runs)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cell(row, key):
    value = row[key]
    if value is None:
        return ""
    if key == "setting":
        return f"`{value}`"
    if key == "against_dense":
        return f"{value:+.2f}"
    if key in ("accuracy", "last_ten", "best"):
        mean, deviation = value
        shown = f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}") + " %"
        return shown + (f" ({', '.join(map(str, row['best_epochs']))})" if key == "best" else "")
    return f"{value:,}" if isinstance(value, int) else value


def plot(runs: Sequence[dict], path: Path) -> bool:
    """Draw a row of plots per data set, error bars being the deviation; return False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        return False
    rows = over_seeds(runs)
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    networks = {row["network"] for row in rows}
    figure = Figure(figsize=(15, 4.5 * len(datasets)), layout="constrained")
    for dataset, line in zip(datasets, figure.subplots(len(datasets), len(AXES), squeeze=False), strict=True):
        here = [row for row in rows if row["dataset"] == dataset]
        for axes, (key, label) in zip(line, AXES.items(), strict=True):
            _draw(axes, here, key, several=len(networks) > 1)
            axes.set(xlabel=label, ylabel="test accuracy, %", title=dataset)
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.tick_params(axis="x", labelrotation=20)
            axes.grid(alpha=0.3)
        line[0].legend(fontsize="small")
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    return True


def _draw(axes, rows, key, several):
    """One line per network, type and alpha, its points named by rank or sparsity; dense as a star and a dashed line."""
    series = {}
    for row in rows:
        name = row["type"]
        if name != "dense" and row["alpha"] != 0.5:
            name = f"{name}, alpha {row['alpha']:g}"
        name = f"{name} {row['varied']}".rstrip()
        series.setdefault(f"{row['network']} {name}" if several else name, []).append(row)
    for name, points in series.items():
        points = sorted(points, key=lambda row: row[key])
        dense = points[0]["type"] == "dense"
        means, deviations = zip(*(row["accuracy"] for row in points), strict=True)
        bars = axes.errorbar(
            [row[key] for row in points],
            means,
            yerr=[deviation or 0 for deviation in deviations],
            marker="*" if dense else "o",
            markersize=12 if dense else 5,
            capsize=3,
            label=name,
        )
        if dense:
            axes.axhline(means[0], linestyle="--", linewidth=1, color=bars[0].get_color())
            continue
        for row, mean in zip(points, means, strict=True):
            value = row["sparsity"] if row["type"] == "sparse" else row["rank"]
            axes.annotate(f"{value:g}", (row[key], mean), (4, 4), textcoords="offset points", fontsize="small")
    values = [row[key] for row in rows]
    if max(values) > 10 * min(values):
        axes.set_xscale("log")
