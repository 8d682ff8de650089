"""The rows of Table 2, LinearConv and other methods on the same networks, with the counts of each row.

Counts are for 3x32x32 images and 10 classes. Ten of the twelve printed figures are reproduced; for the other two the
reason is tested. Four rows are not in the paper's table: Ghost, SVD, full rank, and a thinner plain network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch.nn as nn

from baselines import Baseline
from baselines.basis import BasisConv
from experiments.results import OTHERS
from experiments.table1.counts import as_printed, count, counted_row
from experiments.thinner import width_for
from linearconv_variants import Variant
from models.squeezenet_xcnn import SqueezeNet
from models.vgg_xcnn import VGG11

METHODS = {"dense": "Conv", "rank": "-Lr", "lowrank": "-LRr"} | OTHERS  # by type


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str  # in the paper
    network: Callable[..., nn.Module]
    variant: Variant | Baseline  # method that replaces the convolutions
    printed: tuple[str, str] = ("-", "-")  # parameters in M and FLOPs in B in the paper
    accuracy: tuple[float, ...] = ()  # the paper's on CIFAR-10, SVHN, ImageNet in %; differences to the plain network
    width: float = 1.0
    as_reported: bool = False  # whether the paper quotes the accuracies of the method's authors

    @property
    def method(self) -> str:
        """The name of the row's setting, see :func:`experiments.results.method`."""
        return METHODS[self.variant.type] + (f", width {self.width:g}" if self.width != 1 else "")

    def build(self) -> nn.Module:
        """Return the network with new weights."""
        return self.variant.build(self.network, width=self.width)


PLAIN, RANK10 = Variant("dense"), Variant("lowrank")
SQUEEZENET_LRR = Row("SqueezeNet-LRr", SqueezeNet, RANK10, ("0.49", "0.079"), (-1.5, 0.2, -0.9))
VGG11_LRR = Row("VGG11-LRr", VGG11, RANK10, ("4.65", "0.350"), (-0.6, 0.0, -0.3))


@cache
def table() -> tuple[Row, ...]:
    """Return all rows. The last row is a thinner plain VGG11 with the parameters of VGG11-LRr."""
    return (
        Row("SqueezeNet", SqueezeNet, PLAIN, ("0.73", "0.069"), (83.8, 95.1, 71.4)),
        SQUEEZENET_LRR,
        Row("VGG11", VGG11, PLAIN, ("9.23", "0.171"), (90.4, 95.4, 70.2)),
        Row("VGG11-OctConv", VGG11, Baseline("octave"), ("9.23", "0.077"), (-1.1, -0.5, -0.7)),
        Row("VGG11-Basis", VGG11, Baseline("basis"), ("1.99", "0.101"), (-0.1, 0.2, -0.2), as_reported=True),
        Row("VGG11-Ghost", VGG11, Baseline("ghost")),
        Row("VGG11-SVD", VGG11, Baseline("svd")),
        Row("VGG11-Lr", VGG11, Variant("rank")),
        VGG11_LRR,
        Row("VGG11, thinner", VGG11, PLAIN, width=width_for(VGG11, count(VGG11_LRR.build())["parameters"])),
    )


# ---- the two figures that differ: changes that give the printed figures ---------------------------------------------


def _basis_without_bias():
    model = Baseline("basis").build(VGG11)
    for layer in model.modules():
        if isinstance(layer, BasisConv):
            layer.basis.bias = None
    return model


def _choices_of_squeezenet():
    """Return which choices of 3x3 convolutions, at rank 10, have both printed figures of SqueezeNet-LRr."""
    dense, savings = SqueezeNet(), []
    plain = count(dense)
    for name, layer in dense.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            model = SqueezeNet()
            model.set_submodule(name, RANK10.conv(layer.in_channels, layer.out_channels, 3, padding=1))
            savings.append({key: plain[key] - value for key, value in count(model).items()})
    fitting = 0
    for choice in product((0, 1), repeat=len(savings)):
        counts = dict(plain)
        for key in counts:
            counts[key] -= sum(chosen * saving[key] for chosen, saving in zip(choice, savings, strict=True))
        fitting += tuple(as_printed(counts).values()) == SQUEEZENET_LRR.printed
    choices = f"{fitting} of {2 ** len(savings)} choices of 3x3 convolutions"
    return f"printed FLOPs have all eight expand convolutions; both figures come out with {choices}, not with that one"


def count_rows() -> list[dict]:
    """Return the counts of each row, see :func:`experiments.table1.counts.counted_row`."""
    bias = "printed figure leaves out the bias of the shared filters"
    reasons = {("VGG11-Basis", "flops"): (bias, _basis_without_bias)}
    reasons["SqueezeNet-LRr", "parameters"] = _choices_of_squeezenet(), None
    return [counted_row(row.name, row.build(), row.printed, reasons) for row in table()]
