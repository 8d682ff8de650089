"""What a sweep ends in: a table and a plot of accuracy against parameters and FLOPs, over seeds.

    python experiments/sweep.py ... --table

Both are made from the runs in results/<name>.json. Accuracy is that after the last epoch, not the best one, which would
be chosen on the test images. Mean and sample standard deviation (divided by n - 1) are over the seeds of a setting.
"""

import statistics

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


def over_seeds(runs):
    """A row per network, data set and setting: the counts, and mean, deviation and number of its accuracies."""
    groups = {}
    for run in runs:
        report = run["report"]
        groups.setdefault((report["dataset"], report["architecture"], run["setting"]), []).append(report)
    rows = []
    for (dataset, network, setting), reports in groups.items():
        accuracies = [report["test_accuracy"] for report in reports]
        rows.append({
            "dataset": dataset,
            "network": network,
            "setting": setting,
            **{key: reports[0][key] for key in ("type", "rank", "sparsity", "alpha")},
            **{key: round(statistics.fmean(report[key] for report in reports)) for key in COUNTS},
            "mean": statistics.fmean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "seeds": len(accuracies),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["dataset"], row["network"]))  # settings stay in the sweep's order


def markdown(runs):
    """The table, a line per row of :func:`over_seeds`."""
    lines = [
        f"| data | network | setting | {' | '.join(COUNTS.values())} | test accuracy | seeds |",
        f"| --- | --- | --- |{' ---: |' * (len(COUNTS) + 2)}",
    ]
    for row in over_seeds(runs):
        counts = " | ".join(f"{row[key]:,}" for key in COUNTS)
        accuracy = f"{row['mean']:.2f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.2f}") + " %"
        place = f"{row['dataset']} | {row['network']} | `{row['setting']}`"
        lines.append(f"| {place} | {counts} | {accuracy} | {row['seeds']} |")
    return lines


def plot(runs, path):
    """Draw a row of plots per data set, error bars being the deviation; returns False where matplotlib is missing."""
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
        name = (
            row["type"] if row["type"] == "dense" or row["alpha"] == 0.5 else f"{row['type']}, alpha {row['alpha']:g}"
        )
        series.setdefault(f"{row['network']} {name}" if several else name, []).append(row)
    for name, points in series.items():
        points = sorted(points, key=lambda row: row[key])
        dense = points[0]["type"] == "dense"
        bars = axes.errorbar(
            [row[key] for row in points],
            [row["mean"] for row in points],
            yerr=[row["deviation"] or 0 for row in points],
            marker="*" if dense else "o",
            markersize=12 if dense else 5,
            capsize=3,
            label=name,
        )
        if dense:
            axes.axhline(points[0]["mean"], linestyle="--", linewidth=1, color=bars[0].get_color())
            continue
        for row in points:
            value = row["sparsity"] if row["type"] == "sparse" else row["rank"]
            axes.annotate(f"{value:g}", (row[key], row["mean"]), (4, 4), textcoords="offset points", fontsize="small")
    values = [row[key] for row in rows]
    if max(values) > 10 * min(values):
        axes.set_xscale("log")
