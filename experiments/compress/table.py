"""The table and the plot of a compression study.

python -m experiments.compress --name compress_base --table
"""

from pathlib import Path

from training.markdown import markdown_table


def markdown(record: dict) -> list[str]:
    """Return the lines of the table: a row per method, with its parameters and accuracies.

    Args:
        record: content of the result file.
    """
    tuned = record["finetune"]
    scratch = {row["method"]: row["accuracies"][-1] for row in record["rows"] if row["kind"] == "from scratch"}
    rows = []
    for row in record["rows"]:
        accuracies = row["accuracies"]
        if row["kind"] != "from scratch":
            cells = [accuracies[0], accuracies[1], accuracies[tuned], scratch.get(row["method"])]
        elif row["method"] == "dense":
            cells = [None, None, None, scratch["dense"]]
        else:
            continue
        shown = ["" if cell is None else f"{cell:.2f} %" for cell in cells]
        rows.append([row["method"], f"{row['parameters']:,}", *shown])
    last = f"from scratch, {record['epochs']} epochs"
    return markdown_table(["way", "parameters", "converted", "after 1 epoch", f"after {tuned}", last], rows)


def plot(record: dict, path: Path) -> bool:
    """Draw the figure of experiments/figures/compression.py as PNG; return False if matplotlib is missing.

    Args:
        record: content of the result file.
        path: path of the image.
    """
    try:
        from experiments.figures import compression, style
    except ImportError:
        return False
    with style.styled():
        style.save(compression.figure_of(record), path, formats=("png",))
    return True
