"""What a compression study ends in: a table and a plot of the accuracy that each way keeps.

python -m experiments.compress --name compress_base --table
"""

from pathlib import Path


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
    """Draw the figure of experiments/figures/compression.py as PNG; return False where matplotlib is missing.

    Args:
        record: of the result file.
        path: of the image.
    """
    try:
        from experiments.figures import compression, style
    except ImportError:
        return False
    with style.styled():
        style.save(compression.figure_of(record), path, formats=("png",))
    return True
