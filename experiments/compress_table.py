"""What a compression study ends in: a table and a plot of the accuracy that each way keeps.

python -m experiments.compress --name compress_base --table
"""

from pathlib import Path

from training.files import write_whole

COLORS = {"converted": "#0b3c7d", "other": "#d98200"}  # dark and light in grey too


def markdown(record: dict) -> list[str]:
    """Return the table's lines: a row per way, its parameters, and its accuracy as converted, after one and after all
    epochs of fine-tuning, and from scratch.

    Args:
        record: of the result file.
    """
    tuned = record["finetune"]
    lines = [
        f"| way | parameters | converted | after 1 epoch | after {tuned} | from scratch, {record['epochs']} epochs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    scratch = _from_scratch(record)
    for row in record["rows"]:
        if row["kind"] != "from scratch":
            cells = [*(row["accuracies"][epoch] for epoch in (0, 1, tuned)), scratch.get(row["method"])]
        elif row["method"] == "dense":
            cells = [None, None, None, scratch["dense"]]
        else:
            continue
        shown = ["" if cell is None else f"{cell:.2f} %" for cell in cells]
        lines.append(f"| {row['method']} | {row['parameters']:,} | {' | '.join(shown)} |")
    return lines


def _from_scratch(record):
    return {row["method"]: row["accuracies"][-1] for row in record["rows"] if row["kind"] == "from scratch"}


def plot(record: dict, path: Path) -> bool:
    """Draw a line per way, by number of parameters: accuracy as converted on the left, after training on the right.

    Returns:
        False where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        return False
    rows = sorted((row for row in record["rows"] if row["kind"] != "from scratch"), key=lambda row: row["parameters"])
    scratch, tuned, places = _from_scratch(record), record["finetune"], range(len(rows))
    figure = Figure(figsize=(11, 1.6 + 0.36 * len(rows)), layout="constrained")
    converted, trained = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    for place, row in zip(places, rows, strict=True):
        color = COLORS[row["kind"]]
        as_converted, first, last = (row["accuracies"][epoch] for epoch in (0, 1, tuned))
        converted.plot(as_converted, place, "D", color=color)
        trained.plot([first, last], [place, place], color=color, linewidth=1)
        trained.plot(first, place, "o", color=color, fillstyle="none")
        trained.plot(last, place, "o", color=color)
        if row["method"] in scratch:
            trained.plot(scratch[row["method"]], place, "k*", markersize=10)
    for axes in (converted, trained):
        axes.axvline(scratch["dense"], color="black", linestyle="--", linewidth=1)
        axes.set_yticks(places, [f"{row['method']}  ({row['parameters'] / 1000:.0f} k)" for row in rows])
        axes.grid(alpha=0.3)
    converted.set(title="as converted", xlabel="test accuracy, %")
    trained.set(title="after training", xlabel="test accuracy, %")
    plural = "s" if tuned > 1 else ""
    dense = next(row["parameters"] for row in record["rows"] if row["method"] == "dense")
    signs = [
        ({"color": COLORS["converted"], "marker": "s"}, "LinearConv"),
        ({"color": COLORS["other"], "marker": "s"}, "other ways"),
        ({"color": "grey", "marker": "o", "fillstyle": "none"}, "1 epoch of fine-tuning"),
        ({"color": "grey", "marker": "o"}, f"{tuned} epoch{plural} of fine-tuning"),
        ({"color": "black", "marker": "*"}, f"from scratch, {record['epochs']} epochs"),
        ({"color": "black", "linestyle": "--"}, f"dense ({dense / 1000:.0f} k), {record['epochs']} epochs"),
    ]
    handles = [Line2D([], [], **({"linestyle": ""} | style), label=label) for style, label in signs]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    return True
