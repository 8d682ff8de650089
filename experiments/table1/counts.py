"""The parameters and FLOPs of Table 1: 31 of 36 figures equal the printed ones, and the others are explained.

Counts are for 3x32x32 images and 10 classes. A figure is equal if our count, rounded to the paper's digits, is the
printed figure. For the others the reason is tested: the network is changed accordingly and counted again.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn as nn

from experiments.markdown import markdown_table
from experiments.paper import METHODS, NETWORKS, PRINTED
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from models.allconv_xcnn import AllConv
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from training import counting

IMAGE = (3, 32, 32)
RANK10 = partial(LinearConvLowRank, rank=10)
FIGURES = {"parameters": ("parameters", 1e6, ".2f"), "flops": ("flops_paper", 1e9, ".3f")}  # key, unit, paper's digits
Reasons = dict[tuple[str, str], tuple[str, Callable[[], nn.Module] | None]]


def count(model: nn.Module) -> dict[str, int]:
    """Return `parameters`, `flops_paper` and `macs_inference` of a network."""
    counts = counting.count(model, IMAGE)
    return {key: counts[key] for key in ("parameters", "flops_paper", "macs_inference")}


def as_printed(counts: dict[str, int]) -> dict[str, str]:
    """Return `parameters` in M and `flops` in B with the digits of the paper."""
    return {figure: format(counts[key] / unit, digits) for figure, (key, unit, digits) in FIGURES.items()}


def counted_row(name: str, model: nn.Module, printed: Sequence[str], reasons: Reasons) -> dict[str, object]:
    """Return a row of a table of counts: exact and rounded counts, printed figures, and a verdict for each.

    Args:
        printed: parameters in M and FLOPs in B as printed in the paper; `-` for no figure.
        reasons: for a row and figure, why the figure differs, and a function that builds the network with it, or None.
    """
    row = {"network": name} | count(model)
    for (figure, ours), theirs in zip(as_printed(row).items(), printed, strict=True):
        verdict, changed = reasons.get((name, figure), ("unexplained", None))
        if theirs == "-":
            verdict = "not in the paper's Table 2"
        elif ours == theirs:
            verdict = "equal"
        elif changed:
            again = as_printed(count(changed()))[figure]
            verdict += f" ({'' if again == theirs else 'NOT confirmed, '}counted so: {again})"
        row |= {f"{figure}_ours": ours, f"{figure}_printed": theirs, f"{figure}_verdict": verdict}
    return row


def markdown(rows: list[dict]) -> list[str]:
    """Return the lines of the table, with the reasons as numbered notes below."""
    header = ["network", "parameters", "ours, M", "paper, M", "FLOPs, paper's convention", "ours, B", "paper, B"]
    notes, lines = {}, []
    for row in rows:
        cells = [row["network"]]
        for figure, (key, *_) in FIGURES.items():
            verdict = row[f"{figure}_verdict"]
            mark = "" if verdict == "equal" else f" ({notes.setdefault(verdict, len(notes) + 1)})"
            cells += [f"{row[key]:,}", row[f"{figure}_ours"], row[f"{figure}_printed"] + mark]
        lines.append([*cells, f"{row['macs_inference']:,}"])
    numbered = [f"({number}) {note}  " for note, number in notes.items()]
    return [*markdown_table([*header, "multiply-adds at inference"], lines), "", *numbered]


# ---- Table 1, with networks that have the five figures that differ --------------------------------------------------


def _padded_conv8(conv):
    model = AllConv(conv=conv)
    model.conv8 = conv(model.conv8.in_channels, model.conv8.out_channels, 1, padding=1)
    return model


def _conv_with_bias(*args, **kwargs):
    return LinearConv(*args, **(kwargs | {"bias": True}))


def _linearconv_stem():
    model = ResNeXt29_2x64d(conv=LinearConv)
    model.conv1 = LinearConv(model.conv1.in_channels, model.conv1.out_channels, 1, bias=False)
    return model


PADDED = "printed figure has the 1x1 conv8 padded by 1, a default of the published layer"
BIASES = "printed figure counts biases, which the published network does not have"
STEM = "printed figure has a LinearConv stem; the published stem is a plain convolution"
REASONS = {
    ("AllConv-Lr", "flops"): (PADDED, partial(_padded_conv8, LinearConv)),
    ("AllConv-LRr", "flops"): (PADDED, partial(_padded_conv8, RANK10)),
    ("ResNet-18-Lr", "flops"): (BIASES, partial(ResNet18, _conv_with_bias)),
    ("ResNeXt-29-Lr", "parameters"): (STEM, _linearconv_stem),
    ("MobileNetV2-LRr", "flops"): ("printed figure is cut off after three decimals, not rounded", None),
}


def count_rows() -> list[dict]:
    """Return the rows of Table 1, see :func:`counted_row`."""
    rows = []
    for network, build in NETWORKS.items():
        convs = (nn.Conv2d, LinearConv, RANK10)
        for suffix, conv, printed in zip(METHODS, convs, PRINTED[network], strict=True):
            rows.append(counted_row(network + suffix, build(conv), printed, REASONS))
    return rows
