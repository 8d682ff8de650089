"""What a sweep ends in: a table of accuracy, parameters and FLOPs, over seeds.

    python -m experiments.sweep ... --table

It is made from the runs in results/<name>.json. Accuracy is that after the last epoch, not the best one, which would
be chosen on the test images. Mean and sample standard deviation (divided by n - 1) are over the seeds of a setting.
"""

import statistics
from collections.abc import Sequence

from experiments.results import dataset_of, mean_and_deviation

COUNTS = {
    "parameters": "parameters",
    "nonzero_parameters": "of them not pruned",
    "flops_paper": "FLOPs, the paper's convention",
    "macs_inference": "multiply-adds at inference",
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
    "correlation": "mean correlation of primary filters",
    "seeds": "seeds",
    "recipe": "recipe",
    "epochs": "epochs",
}
CONDITIONS = ("dataset", "network", "recipe", "epochs")  # rows compare that have these in common
USUAL_COLUMNS = ("dataset", "network", "setting", *COUNTS, "accuracy", "seeds")
LEFT_ALIGNED = ("dataset", "network", "setting", "recipe", "row")


def over_seeds(runs: Sequence[dict]) -> list[dict]:
    """Summarise the runs of a result file.

    Returns:
        A row per data set, network, setting, recipe and number of epochs: the counts, the number of `seeds`, and as
        (mean, deviation), in per cent, `accuracy` after the last epoch, `last_ten`, the mean of the last ten epochs
        (None after fewer), and `best`; a deviation of one seed is None. `against_dense` is the difference of mean
        accuracies to the dense network's of the same recipe and epochs: of the one with the same further options, else
        of the one without any; None where there is none. `correlation` is a text, the mean absolute one of primary
        filters after the last epoch; None where it was not recorded.
    """
    groups = {}
    for run in runs:
        report = run["report"]
        conditions = dataset_of(run), report["architecture"], report.get("recipe", "paper"), report["epochs"]
        groups.setdefault((conditions, run["setting"]), []).append(run)
    rows = []
    for (conditions, setting), same in groups.items():
        reports, logs = [run["report"] for run in same], [run["log"][-10:] for run in same]
        row = dict(zip(CONDITIONS, conditions, strict=True)) | {"setting": setting, "seeds": len(same)}
        row["varied"] = same[0].get("varied", "")
        row |= {key: reports[0][key] for key in ("type", "rank", "sparsity", "alpha")}
        row |= {key: round(statistics.fmean(report[key] for report in reports)) for key in COUNTS}
        row["accuracy"] = mean_and_deviation([report["test_accuracy"] for report in reports])
        row["best"] = mean_and_deviation([report["best_test_accuracy"] for report in reports])
        row["best_epochs"] = sorted({report["best_epoch"] for report in reports})
        last_ten = [statistics.fmean(record["test_accuracy"] for record in log) for log in logs if len(log) == 10]
        row["last_ten"] = mean_and_deviation(last_ten) if len(last_ten) == len(same) else None
        left = [log[-1].get("correlation") if log else None for log in logs]
        row["correlation"] = None if None in left else f"{statistics.fmean(left):.3f}"
        rows.append(row)
    dense = {(*map(row.get, CONDITIONS), row["varied"]): row for row in rows if row["type"] == "dense"}
    for row in rows:
        plain, same = (dense.get((*map(row.get, CONDITIONS), varied)) for varied in ("", row["varied"]))
        reference = (plain or same) if row["type"] == "dense" else (same or plain)
        row["against_dense"] = None if reference is None else row["accuracy"][0] - reference["accuracy"][0]
    return sorted(rows, key=lambda row: (row["dataset"], row["network"]))  # settings stay in the sweep's order


def markdown(runs: Sequence[dict], columns: Sequence[str] = USUAL_COLUMNS) -> list[str]:
    """Return the table's lines, one per row of :func:`over_seeds`.

    Args:
        runs: of a result file.
        columns: keys of `COLUMNS`; recipe and epochs are added where they differ.
    """
    rows = [row | {"setting": f"`{row['setting']}`"} for row in over_seeds(runs)]
    differing = [key for key in ("recipe", "epochs") if key not in columns and len({row[key] for row in rows}) > 1]
    return table(rows, {key: COLUMNS[key] for key in (*columns, *differing)})


def table(rows: Sequence[dict], columns: dict[str, str]) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        rows: values by column: None, a text, an integer, a difference (a float), a mean with its deviation.
        columns: titles by column.
    """
    lines = [list(columns.values())]
    lines += [["---" if key in LEFT_ALIGNED else "---:" for key in columns]]
    lines += [[_cell(row, key) for key in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cell(row, key):
    value = row[key]
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:+.2f}"
    if isinstance(value, tuple):
        mean, deviation = value
        shown = f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}") + " %"
        return shown + (f" ({', '.join(map(str, row['best_epochs']))})" if key == "best" else "")
    return f"{value:,}" if isinstance(value, int) else value
