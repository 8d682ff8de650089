"""The table of a sweep: accuracy, parameters and FLOPs, over seeds.

The accuracy is measured after the last epoch; the best epoch would be chosen on the test images. Mean and sample
standard deviation (divided by n - 1) are over the seeds of a setting.
"""

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.markdown import markdown_table
from experiments.results import comparable, mean_and_deviation, mean_over_seeds
from linearconv_convert.exporting import atomic_file

COUNTS = {
    "parameters": "parameters",
    "nonzero_parameters": "of them not pruned",
    "flops_paper": "FLOPs, the paper's convention",
    "macs_inference": "multiply-adds at inference",
}
COLUMNS = {  # title of each column
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
USUAL_COLUMNS = ("dataset", "network", "setting", *COUNTS, "accuracy", "seeds")
MEANS = ("accuracy", "last_ten", "best")  # columns of means with deviations
LEFT_ALIGNED = ("dataset", "network", "setting", "row")


def summarise(runs: Iterable[dict]) -> list[dict]:
    """Summarise runs of :func:`experiments.results.every_run` over seeds; a second run with the same seed is dropped.

    Returns:
        A row per data set, network, setting, recipe and number of epochs, with the keys of `COLUMNS`. Accuracies are
        (mean, deviation) in per cent; the deviation of a single seed is None. `last_ten` is None for fewer than ten
        epochs, `correlation` if not recorded. `against_dense` is the difference to the mean accuracy of the dense
        network under the same conditions: with the same further options, else without options, else None.
    """
    rows = []
    for conditions, settings in comparable(runs, "setting").items():
        network, dataset, recipe, epochs = conditions
        shared = {"dataset": dataset, "network": network, "recipe": recipe, "epochs": epochs, "conditions": conditions}
        same = [shared | {"setting": setting} | _over_seeds(seeds) for setting, seeds in settings.items()]
        dense = {row["varied"]: row["accuracy"][0] for row in same if row["type"] == "dense"}
        for row in same:
            order = ["", row["varied"]] if row["type"] == "dense" else [row["varied"], ""]
            references = [dense[varied] for varied in order if varied in dense]
            row["against_dense"] = row["accuracy"][0] - references[0] if references else None
        rows += same
    return sorted(rows, key=lambda row: (row["dataset"], row["network"]))  # settings keep the sweep's order


def _over_seeds(runs):
    """Return the values of one setting over its runs, which differ only by seed."""
    report, logs = runs[0]["report"], [run["log"][-10:] for run in runs]
    row = {key: round(mean_over_seeds(runs, key)[0]) for key in COUNTS}
    row |= {"type": report["type"], "num_classes": report.get("num_classes")}
    row |= {"varied": runs[0].get("varied", ""), "seeds": len(runs)}
    row |= {"accuracy": mean_over_seeds(runs), "best": mean_over_seeds(runs, "best_test_accuracy")}
    row["best_epochs"] = sorted({run["report"]["best_epoch"] for run in runs})
    row["last_ten"] = row["correlation"] = None
    if all(len(log) == 10 for log in logs):
        row["last_ten"] = mean_and_deviation(statistics.fmean(epoch["test_accuracy"] for epoch in log) for log in logs)
    if all(log and "correlation" in log[-1] for log in logs):
        row["correlation"] = f"{statistics.fmean(log[-1]['correlation'] for log in logs):.3f}"
    return row


def markdown(runs: Iterable[dict], columns: Sequence[str] = USUAL_COLUMNS) -> list[str]:
    """Return the lines of the table of :func:`summarise`."""
    rows = summarise(runs)
    differing = [key for key in ("recipe", "epochs") if key not in columns and len({row[key] for row in rows}) > 1]
    return table(rows, {key: COLUMNS[key] for key in (*columns, *differing)})


def table(rows: Sequence[dict], columns: dict[str, str]) -> list[str]:
    """Return the lines of a table of rows; `columns` are their titles, text columns first.

    A value is None, a text, an integer, a difference (float), or a mean with its deviation.
    """
    cells = [[_cell(row, key) for key in columns] for row in rows]
    return markdown_table(list(columns.values()), cells, left=sum(key in LEFT_ALIGNED for key in columns))


def _cell(row, key):
    value = row[key]
    if value is None:
        return ""
    if key == "setting":
        return f"`{value}`"
    if isinstance(value, float):
        return f"{value:+.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    mean, deviation = value
    text = f"{mean:.2f} %" if deviation is None else f"{mean:.2f} ± {deviation:.2f} %"
    return f"{text} ({', '.join(map(str, row['best_epochs']))})" if key == "best" else text


def write_table(result: Path, lines: Sequence[str], runs: Iterable[dict]) -> list[Path]:
    """Write lines of Markdown, and all columns of the runs as CSV, beside a result file; return the paths."""
    paths = [result.with_suffix(suffix) for suffix in (".md", ".csv")]
    with atomic_file(paths[0]) as part:
        part.write_text("\n".join(lines) + "\n")
    with atomic_file(paths[1]) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(f"{key}_deviation" for key in MEANS)])
        for row in summarise(runs):
            means = {key: row[key] or (None, None) for key in MEANS}
            values = [means[key][0] if key in MEANS else row[key] for key in COLUMNS]
            writer.writerow([*values, *(deviation for _, deviation in means.values())])
    return paths
