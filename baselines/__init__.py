"""Other methods with fewer parameters or FLOPs, to compare LinearConv with; each stands where a variant of it can.

    Baseline("ghost").conv(64, 128, 3, padding=1)               # a layer, called as nn.Conv2d is
    Baseline("octave").build(VGG11, num_classes=100)            # a network

They are the published methods in the setting of the paper's Table 2, trained from torch's default initial weights.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn as nn

from baselines.basis import BasisConv, to_basis
from baselines.drop_in import drop_in
from baselines.factorised import FactorisedConv
from baselines.ghost import GhostConv, to_ghost
from baselines.octave import to_octave
from linearconv_variants import Variant

HELP = {  # what each does to a network
    "octave": "octave: a share --alpha of the channels at half resolution (octave convolution)",
    "basis": "basis: 128 filters shared by groups of 128 channels, combined by 1x1 (learned filter basis)",
    "ghost": "ghost: a share --alpha of the maps, the others by a depthwise 3x3 of these (Ghost module)",
    "svd": "svd: two convolutions, by 1x1 the second, with the parameters of full-rank LinearConv",
}
BASELINES = tuple(HELP)


@dataclass(frozen=True)
class Baseline(Variant):
    """A method and its setting, with the fields and the interface of a variant of LinearConv.

    Raises:
        ValueError: for an unknown type, a rank or sparsity, which none of the methods has, or alpha out of its range;
            one line says which.
    """

    type: str = "octave"  # one of BASELINES; alpha has no meaning for `basis`, compute and pruning for none of them

    def __post_init__(self) -> None:
        if self.type not in BASELINES:
            raise ValueError(f"type must be one of {', '.join(BASELINES)}, got {self.type!r}")
        for name, owners in (("rank", "rank and lowrank"), ("sparsity", "sparse")):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning with type {self.type}: it belongs to {owners}")
        if not 0 < self.alpha <= 1 or (self.type == "octave" and self.alpha == 1):
            interval = "(0, 1)" if self.type == "octave" else "(0, 1]"
            raise ValueError(f"alpha must lie in {interval} with type {self.type}, got {self.alpha}")

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """The layer, to be called with the arguments of nn.Conv2d; where it does not suit or saves no weights, that.

        Raises:
            ValueError: for octave, which changes what lies between convolutions too: see :meth:`build`.
        """
        if self.type == "octave":
            raise ValueError("octave is no layer that stands in for nn.Conv2d: Baseline.build makes the whole network")
        if self.type == "basis":
            return partial(drop_in, to_basis)
        return partial(drop_in, partial({"ghost": to_ghost, "svd": FactorisedConv}[self.type], alpha=self.alpha))

    def build(self, network: Callable[..., nn.Module], **arguments: object) -> nn.Module:
        """Return a network made by the method.

        Args:
            network: its constructor, of `conv` and the arguments.
            arguments: `in_channels`, `num_classes`, `width`, as the constructor takes them.

        Raises:
            ValueError: where the method goes with no layer of the network; one line says with which it does.
        """
        if self.type == "octave":
            return to_octave(network(**arguments), self.alpha)
        model = super().build(network, **arguments)
        if not any(isinstance(layer, (BasisConv, FactorisedConv, GhostConv)) for layer in model.modules()):
            layers = "all are grouped, or too thin or too small for it"
            raise ValueError(f"{self.type} goes with no convolution of this {type(model).__name__}: {layers}")
        return model

    def __str__(self) -> str:
        return {
            "octave": f"octave convolution, {self.alpha:.0%} of the channels at half resolution",
            "basis": "learned filter basis, 128 filters for groups of 128 channels",
            "ghost": f"Ghost modules, {self.alpha:.0%} of the maps intrinsic",
            "svd": f"two factors, parameters as of LinearConv, full rank, alpha {self.alpha:g}",
        }[self.type]


def method_of(options: argparse.Namespace) -> Variant:
    """Return the variant or the baseline that a command line asks for, with the options of `add_options`.

    Raises:
        ValueError: as the classes do.
    """
    return (Baseline if options.type in BASELINES else Variant).of(options)
