"""Baselines: a registry of other methods with fewer parameters or FLOPs, for comparison with LinearConv.

    Baseline("octave").build(VGG11, num_classes=100)

These are the published methods in the setting of the paper's Table 2, trained from torch's default initial weights.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn as nn

from baselines.basis import to_basis
from baselines.drop_in import build_with_layers
from baselines.factorised import FactorisedConv
from baselines.ghost import to_ghost
from baselines.octave import build_octave
from linearconv_variants import Variant


@dataclass(frozen=True)
class Method:
    """An entry of the registry."""

    build: Callable[..., nn.Module]  # (network, alpha, **arguments), with a constructor and its arguments
    description: str  # format string, may contain the field `alpha`


BASELINES = {
    "octave": Method(
        build_octave,
        "octave convolution, a share {alpha} of the channels at half resolution",
    ),
    "basis": Method(
        partial(build_with_layers, to_basis),
        "learned filter basis, 128 filters shared by groups of 128 channels and combined by 1x1",
    ),
    "ghost": Method(
        partial(build_with_layers, to_ghost),
        "Ghost modules, a share {alpha} of the maps intrinsic, the others by a depthwise 3x3 of these",
    ),
    "svd": Method(
        partial(build_with_layers, FactorisedConv),
        "two convolutions, the second 1x1, with the parameters of full-rank LinearConv, share {alpha}",
    ),
}
HELP = {name: method.description.format(alpha="--alpha") for name, method in BASELINES.items()}


@dataclass(frozen=True)
class Baseline:
    """A method with its share alpha, in (0, 1]; it builds networks like :class:`linearconv_variants.Variant`."""

    type: str  # a name in BASELINES, and the name of runs
    alpha: float = 0.5
    rank, sparsity, compute = None, None, "auto"  # constants, for reports: the settings of LinearConv's variants

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {self.alpha}")

    def build(self, network: Callable[..., nn.Module], **arguments: object) -> nn.Module:
        """Return `network(conv=..., **arguments)` built by the method, or raise a ValueError if it does not apply."""
        return BASELINES[self.type].build(network, self.alpha, **arguments)

    @property
    def label(self) -> str:
        """The type, for the names of runs."""
        return self.type

    def __str__(self) -> str:
        return BASELINES[self.type].description.format(alpha=self.alpha)


def method_of(options: argparse.Namespace) -> Variant | Baseline:
    """Return the variant or baseline that the options of `add_options` select.

    Raises:
        ValueError: if a setting is out of range or does not apply to the type.
    """
    if options.type not in BASELINES:
        return Variant.of(options)
    for name, owners in (("rank", "rank and lowrank"), ("sparsity", "sparse")):
        if getattr(options, name) is not None:
            raise ValueError(f"{name} has no meaning with type {options.type}: it belongs to {owners}")
    return Baseline(options.type, options.alpha)
