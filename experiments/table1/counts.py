"""Table 1 of the paper, its parameter and FLOP columns: 31 of 36 figures come out as printed, the others explained.

    python -m experiments.table1              # prints the table, writes results/table1_counts.json

Counts are of 3x32x32 images and 10 classes. A figure is equal when it is, rounded to the paper's digits, what the paper
prints. Where it is not, the reason is put to the test: the network is changed accordingly and counted again.
"""

from collections.abc import Callable
from functools import partial

import torch.nn as nn

from experiments.paper import NETWORKS, PRINTED
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from models.allconv_xcnn import AllConv
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from training import counting
from training.report import ROOT

RESULT = ROOT / "results" / "table1_counts.json"
IMAGE = (3, 32, 32)
RANK10 = partial(LinearConvLowRank, rank=10)
VARIANTS = {"": nn.Conv2d, "-Lr": LinearConv, "-LRr": RANK10}


# ---- the five figures that differ: what gives the printed one -------------------------------------------------------


def allconv_with_padded_conv8(conv: Callable[..., nn.Module]) -> nn.Module:
    """Return AllConv with its 1x1 convolution conv8 padded by 1, a default of the published layer."""
    model = AllConv(conv=conv)
    model.conv8 = conv(model.conv8.in_channels, model.conv8.out_channels, 1, padding=1)
    return model


def resnet_with_biases() -> nn.Module:
    """Return ResNet-18 with a bias in every convolution."""
    return ResNet18(conv=lambda *args, **kwargs: LinearConv(*args, **(kwargs | {"bias": True})))


def resnext_with_linearconv_stem() -> nn.Module:
    """Return ResNeXt-29 with its 1x1 stem a LinearConv as well."""
    model = ResNeXt29_2x64d(conv=LinearConv)
    model.conv1 = LinearConv(model.conv1.in_channels, model.conv1.out_channels, 1, bias=False)
    return model


REASONS = {  # (row, figure): reason, the changed network or None
    ("AllConv-Lr", "flops"): (
        "printed figure has the 1x1 conv8 padded by 1, a default of the published layer",
        partial(allconv_with_padded_conv8, LinearConv),
    ),
    ("AllConv-LRr", "flops"): (
        "printed figure has the 1x1 conv8 padded by 1, a default of the published layer",
        partial(allconv_with_padded_conv8, RANK10),
    ),
    ("ResNet-18-Lr", "flops"): (
        "printed figure counts biases, which the published network does not have",
        resnet_with_biases,
    ),
    ("ResNeXt-29-Lr", "parameters"): (
        "printed figure has a LinearConv stem; the published stem is a plain convolution",
        resnext_with_linearconv_stem,
    ),
    ("MobileNetV2-LRr", "flops"): ("printed figure is cut off after three decimals, not rounded", None),
}


# ---- the table ------------------------------------------------------------------------------------------------------


def count_rows() -> list[dict]:
    """Return a row of Table 1 each: ours, rounded and exact, the paper's, and for each figure `equal` or the reason."""
    made = {
        name + suffix: network(conv=conv) for name, network in NETWORKS.items() for suffix, conv in VARIANTS.items()
    }
    return [_row(name, model) for name, model in made.items()]


def _row(name, model):
    parameters, flops = counting.count_parameters(model), counting.flops_paper(model, IMAGE)
    printed = dict(zip(("parameters", "flops"), PRINTED[name], strict=True))
    row = {"network": name, "parameters": parameters, "flops_paper": flops}
    row["macs_inference"] = counting.macs_inference(model, IMAGE)
    ours = _rounded(parameters, flops)
    for figure in printed:
        row[f"{figure}_printed"], row[f"{figure}_ours"] = printed[figure], ours[figure]
        row[f"{figure}_verdict"] = "equal" if ours[figure] == printed[figure] else _reason(name, figure)
    return row


def _rounded(parameters, flops):
    return {"parameters": f"{parameters / 1e6:.2f}", "flops": f"{flops / 1e9:.3f}"}


def _reason(name, figure):
    reason, changed = REASONS.get((name, figure), ("unexplained", None))
    if changed is None:
        return reason
    model = changed()
    again = _rounded(counting.count_parameters(model), counting.flops_paper(model, IMAGE))[figure]
    confirmed = again == PRINTED[name][("parameters", "flops").index(figure)]
    return f"{reason} ({'counted so: ' + again if confirmed else 'NOT confirmed, counted so: ' + again})"


def markdown(rows: list[dict]) -> list[str]:
    """Return the table's lines, the reasons as numbered notes below."""
    lines = [
        "| network | parameters | ours, M | paper, M | FLOPs, paper's convention | ours, B | paper, B "
        "| multiply-adds at inference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    notes = []
    for row in rows:
        marks = {}
        for figure in ("parameters", "flops"):
            verdict = row[f"{figure}_verdict"]
            if verdict == "equal":
                marks[figure] = ""
                continue
            if verdict not in notes:
                notes.append(verdict)
            marks[figure] = f" ({notes.index(verdict) + 1})"
        lines.append(
            f"| {row['network']} | {row['parameters']:,} | {row['parameters_ours']} "
            f"| {row['parameters_printed']}{marks['parameters']} | {row['flops_paper']:,} | {row['flops_ours']} "
            f"| {row['flops_printed']}{marks['flops']} | {row['macs_inference']:,} |"
        )
    lines += ["", *(f"({index}) {note}  " for index, note in enumerate(notes, 1))]
    return lines
