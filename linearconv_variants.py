"""The variants of LinearConv by name: what -t, -r, -s, --alpha and --compute stand for, in every command line.

    Variant("lowrank", rank=10).conv(64, 128, 3, padding=1)          # a layer
    add_options(parser); Variant.of(parser.parse_args()).conv        # a factory, called as nn.Conv2d is

`rank` is LinearConv, below -r 1 LinearConvRankRatio; `lowrank`, `sparse` are what they say; `dense` is nn.Conv2d.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn as nn

from linearconv import COMPUTE_MODES, LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse

LINEARCONV_TYPES = ("rank", "lowrank", "sparse")
TYPES = (*LINEARCONV_TYPES, "dense")
DEFAULT_RANK = {"rank": 1.0, "lowrank": 10}
DEFAULT_SPARSITY = 0.25


@dataclass(frozen=True)
class Variant:
    """A variant and its setting; a rank or sparsity that is left out becomes the default of its type.

    Raises:
        ValueError: for a setting that does not belong to the type or is out of its range; one line says which.
    """

    type: str = "rank"  # one of TYPES
    rank: float | None = None  # rank: share of the primary filters in (0, 1], 1 is full rank; lowrank: an integer
    sparsity: float | None = None  # sparse: share of the coefficients to prune, in [0, 1)
    alpha: float = 0.5  # share of primary filters, in (0, 1]
    compute: str = "auto"  # how the layer is evaluated, one of linearconv.COMPUTE_MODES
    pruning: str = "gradual"  # sparse: the controller, one of linearconv_sparse.SCHEDULES

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"type must be one of {', '.join(TYPES)}, got {self.type!r}")
        for name, owners in (("rank", ("rank", "lowrank")), ("sparsity", ("sparse",))):
            if getattr(self, name) is not None and self.type not in owners:
                belongs = f"it belongs to {' and '.join(owners)}"
                raise ValueError(f"{name} has no meaning with type {self.type}: {belongs}")
        if self.rank is None:
            object.__setattr__(self, "rank", DEFAULT_RANK.get(self.type))
        elif self.type == "lowrank" and float(self.rank).is_integer():  # the command line's numbers are floats
            object.__setattr__(self, "rank", int(self.rank))
        if self.sparsity is None and self.type == "sparse":
            object.__setattr__(self, "sparsity", DEFAULT_SPARSITY)
        LinearConv(1, 1, 1, device="meta", alpha=self.alpha, compute=self.compute)  # the layers check their settings
        self.conv(1, 1, 1, device="meta")

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Variant":
        """Return the variant that the options of :func:`add_options` ask for.

        Raises:
            ValueError: as the class does.
        """
        given = vars(options)
        return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """The layer with its setting, to be called with the arguments of nn.Conv2d."""
        shared = {"alpha": self.alpha, "compute": self.compute}
        if self.type == "dense":
            return nn.Conv2d
        if self.type == "sparse":
            return partial(LinearConvSparse, sparsity=self.sparsity, schedule=self.pruning, **shared)
        if self.type == "lowrank":
            return partial(LinearConvLowRank, rank=self.rank, **shared)
        if self.rank == 1:
            return partial(LinearConv, **shared)
        return partial(LinearConvRankRatio, rank=self.rank, **shared)

    def build(self, network: Callable[..., nn.Module], **arguments: object) -> nn.Module:
        """Return a network with this layer for its convolutions: `network(conv=self.conv, **arguments)`."""
        return network(conv=self.conv, **arguments)

    @property
    def label(self) -> str:
        """Type and setting in a word, for the names of runs: `rank0.5`, `lowrank10`, `sparse0.25`, `dense`."""
        setting = self.sparsity if self.type == "sparse" else self.rank
        return self.type if setting is None else f"{self.type}{setting:g}"

    def __str__(self) -> str:
        if self.type == "dense":
            return "dense (nn.Conv2d)"
        if self.type == "sparse":
            setting = f"pruned to {self.sparsity:.0%}"
        elif self.type == "lowrank":
            setting = f"rank {self.rank}"
        else:
            setting = "full rank" if self.rank == 1 else f"rank {self.rank:g} of the primary filters"
        return f"LinearConv, {setting}, alpha {self.alpha:g}"


def add_options(
    parser: argparse.ArgumentParser,
    types: tuple[str, ...] = TYPES,
    several: bool = False,
    others: dict[str, str] | None = None,
    usual_ranks: str = "default: {rank:g}, {lowrank}".format(**DEFAULT_RANK),
) -> None:
    """Add -t, -r, -s, --alpha and --compute to a parser.

    Args:
        parser: of a command line, or a group of it.
        types: those to choose from.
        several: let -t, -r, -s and --alpha take lists, which are None where left out, as a sweep does.
        others: types beside those of this file, {name: what it is}.
        usual_ranks: what the help says of a rank that is left out.
    """
    meanings = {
        "rank": "rank: LinearConv, A of rank -r as a share (1: vanilla full rank)",
        "lowrank": "lowrank: constant rank -r",
        "sparse": "sparse: A pruned to -s",
        "dense": "dense: the plain network",
    } | (others or {})
    types = (*types, *(others or {}))
    lists = {"nargs": "+"} if several else {}
    usual = {} if several else {"default": "rank"}
    add = parser.add_argument
    add("-t", "--type", choices=types, help="; ".join(meanings[name] for name in types), **usual, **lists)
    add("-r", "--rank", type=float, help=f"share in (0, 1] for rank, integer for lowrank ({usual_ranks})", **lists)
    add("-s", "--sparsity", type=float, help="share of coefficients to prune, 0 <= s < 1 (default: 0.25)", **lists)
    usual = {} if several else {"default": 0.5}
    add("--alpha", type=float, help="share of primary filters, in (0, 1] (default: 0.5)", **usual, **lists)
    add("--compute", choices=COMPUTE_MODES, default="auto", help="how LinearConv is evaluated (default: auto)")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr, with exit code 2."""

    def error(self, message: object) -> None:
        self.exit(2, f"{self.prog}: {' '.join(str(message).split())} (--help lists the options)\n")


def _number(kind, is_allowed, words):
    """A type for argparse: a number of which `is_allowed` is true."""

    def parse(text):
        value = kind(text)
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse's word for what is no number at all
    return parse


positive_int = _number(int, lambda value: value >= 1, "at least 1")
positive_float = _number(float, lambda value: 0 < value < math.inf, "a positive number")
non_negative_int = _number(int, lambda value: value >= 0, "at least 0")
non_negative_float = _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
share = _number(float, lambda value: 0 <= value < 1, "in [0, 1)")
positive_share = _number(float, lambda value: 0 < value <= 1, "in (0, 1]")
