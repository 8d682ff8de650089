"""Baselines: a registry of other methods with fewer parameters or FLOPs, for comparison with LinearConv.

    Baseline("octave").build(VGG11, num_classes=100)

These are the published methods in the setting of the paper's Table 2, trained from torch's default initial weights.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn as nn

from baselines.basis import BasisConv, to_basis
from baselines.drop_in import build_with_layers
from baselines.factorised import FactorisedConv
from baselines.ghost import GhostConv, to_ghost
from baselines.octave import to_octave
from linearconv_variants import Variant


def build_octave(network: Callable[..., nn.Module], alpha: float, **arguments: object) -> nn.Module:
    """Return a network of octave convolutions."""
    return to_octave(network(**arguments), alpha)


@dataclass(frozen=True)
class Method:
    """An entry of the registry."""

    build: Callable[..., nn.Module]  # (network, alpha, **arguments), with a constructor and its arguments
    help: str
    title: str  # format string with the field `alpha`


BASELINES = {
    "octave": Method(
        build_octave,
        "a share --alpha of the channels at half resolution (octave convolution)",
        "octave convolution, {alpha:.0%} of the channels at half resolution",
    ),
    "basis": Method(
        partial(build_with_layers, BasisConv, to_basis),
        "128 filters shared by groups of 128 channels, combined by 1x1 (learned filter basis)",
        "learned filter basis, 128 filters for groups of 128 channels",
    ),
    "ghost": Method(
        partial(build_with_layers, GhostConv, to_ghost),
        "a share --alpha of the maps, the others by a depthwise 3x3 of these (Ghost module)",
        "Ghost modules, {alpha:.0%} of the maps intrinsic",
    ),
    "svd": Method(
        partial(build_with_layers, FactorisedConv, FactorisedConv),
        "two convolutions, by 1x1 the second, with the parameters of full-rank LinearConv",
        "two factors, parameters as of LinearConv, full rank, alpha {alpha:g}",
    ),
}
HELP = {name: method.help for name, method in BASELINES.items()}


@dataclass(frozen=True)
class Baseline:
    """A method with its setting; it builds networks like :class:`linearconv_variants.Variant`.

    Raises:
        ValueError: if the type is unknown or alpha is out of range.
    """

    type: str
    alpha: float = 0.5
    rank, sparsity, compute = None, None, "auto"  # constants, for reports: the settings of LinearConv's variants

    def __post_init__(self) -> None:
        if self.type not in BASELINES:
            raise ValueError(f"type must be one of {', '.join(BASELINES)}, got {self.type!r}")
        if not 0 < self.alpha <= 1 or (self.type == "octave" and self.alpha == 1):
            interval = "(0, 1)" if self.type == "octave" else "(0, 1]"
            raise ValueError(f"alpha must be in {interval} with type {self.type}, got {self.alpha}")

    def build(self, network: Callable[..., nn.Module], **arguments: object) -> nn.Module:
        """Return a network built by the method; a ValueError if the method applies to no layer of the network.

        Args:
            network: constructor with the argument `conv`.
            arguments: further arguments of the constructor.
        """
        return BASELINES[self.type].build(network, self.alpha, **arguments)

    @property
    def label(self) -> str:
        """The type, for the names of runs."""
        return self.type

    def __str__(self) -> str:
        return BASELINES[self.type].title.format(alpha=self.alpha)


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
