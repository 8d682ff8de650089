"""The correlation of the filters of trained networks, for each layer, from the newest checkpoints.

    python -m experiments.correlation --runs dense=ckpt/base/DENSE L=ckpt/base/L Lr=ckpt/base/LR
    python -m experiments.figures correlation --results-folder runs

A run is a folder in which models/base_xcnn.py has trained Base. Writes runs/correlation_base.json: the settings of
every run and, for each layer, the elements above the diagonal of its correlation matrix in hundredths (a string per
row) and the means of their absolute values. Means are over the primary block (the first P filters), the secondary block
(the other filters) and all pairs. A dense layer has no blocks.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from corr_reg import filter_correlation
from experiments.results import USERS, read_json
from linearconv import LinearConv
from linearconv_variants import OneLineParser, Variant
from models.base_xcnn import Base
from training.checkpoints import REPORT, holds_checkpoint, load_newest, write_json
from training.errors import EXPECTED, UsageError, report_failure
from training.report import origin


@torch.no_grad()
def measure(folder: Path) -> dict:
    """Return the settings of a run and the correlation of its filters, in the form of the result file."""
    if not holds_checkpoint(folder):
        raise UsageError(f"there is no checkpoint in {folder}: give the folder of a run")
    state, _ = load_newest(folder)
    settings, weights = state["settings"], state["model"]
    if settings["network"] != "Base":
        raise UsageError(f"{folder} holds a run of {settings['network']}: give one of Base")
    variant = Variant(**{name: settings[name] for name in ("type", "rank", "sparsity", "alpha")})
    first = weights.get("feat.0.0.conv_weights", weights.get("feat.0.0.weight"))  # (P or F, C, 3, 3)
    model = Base(variant.conv, first.shape[1], settings["num_classes"], settings["width"])
    model.load_state_dict(weights)
    run = {"folder": folder.resolve().name, "epoch": state["epoch"], "settings": settings, "layers": []}
    if (folder / REPORT).exists():
        report = read_json(folder / REPORT)
        run |= {key: report[key] for key in ("test_accuracy", "torch", "device", "git_commit")}
    for number in (1, 2, 3):
        name = f"feat.{number - 1}.0"
        layer = model.get_submodule(name)
        correlation = filter_correlation(layer.weight.double())  # (F, F)
        means, primary = {"all": mean_absolute(correlation)}, None
        if isinstance(layer, LinearConv):
            primary = layer.primary_channels
            means["primary"] = mean_absolute(correlation[:primary, :primary])
            means["secondary"] = mean_absolute(correlation[primary:, primary:])
        described = {"layer": number, "name": name, "filters": len(correlation), "primary": primary}
        hundredths = (100 * correlation).round().int().tolist()
        above = [" ".join(map(str, row[start:])) for start, row in enumerate(hundredths[:-1], 1)]
        described |= {"elements": layer.weight[0].numel(), "mean_absolute": means, "hundredths": above}
        run["layers"].append(described)
    return run


def mean_absolute(correlation: Tensor) -> float | None:
    """Return the mean absolute value of the off-diagonal elements of a matrix (n, n); None for a single filter."""
    pairs = len(correlation) * (len(correlation) - 1)
    return ((correlation.abs().sum() - correlation.diagonal().abs().sum()) / pairs).item() if pairs else None


def unpack(rows: Sequence[str]) -> np.ndarray:
    """Return the correlation matrix (n, n) from the `hundredths` of a result file: n - 1 rows above the diagonal."""
    size = len(rows) + 1
    above = np.zeros((size, size))
    above[np.triu_indices(size, 1)] = [int(number) / 100 for row in rows for number in row.split()]
    return above + above.T + np.eye(size)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    shown = "runs of Base, named as in the figure's columns: dense, L and Lr are the paper's Conv, -L and -Lr"
    add("--runs", nargs="+", required=True, metavar="NAME=FOLDER", help=shown)
    add("--output", type=Path, default=USERS / "correlation_base.json", help="default: runs/correlation_base.json")
    options = parser.parse_args(argv)
    named = dict(text.split("=", 1) for text in options.runs if "=" in text)
    if len(named) < len(options.runs):
        parser.error("--runs must be NAME=FOLDER, each with another name")
    try:
        runs = [{"name": name, **measure(Path(folder))} for name, folder in named.items()]
        made_by = origin() | {"command": None}  # the command names folders of this machine
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, {"network": "Base", "origin": made_by, "runs": runs})
    except EXPECTED as error:
        return report_failure(error, "correlation")
    for run in runs:
        for layer in run["layers"]:
            means = ", ".join(f"{block} {mean:.3f}" for block, mean in layer["mean_absolute"].items() if mean)
            print(f"{run['name']}, layer {layer['layer']}, {layer['filters']} filters: mean |correlation| {means}")
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
