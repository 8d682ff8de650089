"""The registry of LinearConv variants, and the options -t, -r, -s, --alpha and --compute of every command line.

    Variant("lowrank", rank=10).conv(64, 128, 3, padding=1)          # a layer
    add_options(parser); Variant.of(parser.parse_args()).conv        # a factory, called like nn.Conv2d

A new variant needs a layer class in a separate file and an entry in `VARIANTS`. The type `dense` is nn.Conv2d.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch.nn as nn

from linearconv import COMPUTE_MODES, LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse


@dataclass(frozen=True)
class VariantType:
    """An entry of the registry: how to build the layer of a variant, and how command lines describe the variant."""

    layer: Callable[..., LinearConv]  # called with the arguments of nn.Conv2d, alpha, compute and `arguments`
    help: str
    title: str  # a format string with fields of Variant
    arguments: dict[str, str]  # {argument of the layer: field of Variant}; the first field is the variant's setting
    default: float  # value of the setting; an int makes the setting an integer
    values: str  # description of the values of the setting

    @property
    def setting(self) -> str:
        """The field of Variant and the option that set the variant: "rank" or "sparsity"."""
        return next(iter(self.arguments.values()))


def full_or_ratio(*args: Any, rank: float, **kwargs: Any) -> LinearConv:
    """Return a full-rank layer for `rank=1`, and a LinearConvRankRatio for lower ranks."""
    return LinearConv(*args, **kwargs) if rank == 1 else LinearConvRankRatio(*args, rank=rank, **kwargs)


VARIANTS = {
    "rank": VariantType(
        full_or_ratio,
        help="LinearConv, A of rank -r as a share (1: vanilla full rank)",
        title="rank {rank:g} of the primary filters",
        arguments={"rank": "rank"},
        default=1.0,
        values="share in (0, 1]",
    ),
    "lowrank": VariantType(LinearConvLowRank, "constant rank -r", "rank {rank}", {"rank": "rank"}, 10, "integer"),
    "sparse": VariantType(
        LinearConvSparse,
        help="A pruned to -s",
        title="pruned to {sparsity:.0%}",
        arguments={"sparsity": "sparsity", "schedule": "pruning"},
        default=0.25,
        values="share of coefficients to prune in [0, 1)",
    ),
}
LINEARCONV_TYPES = VARIANTS.keys()  # a view, which also contains later entries


@dataclass(frozen=True)
class Variant:
    """A variant with its setting. For a rank or sparsity of None, the default of the type applies.

    Raises:
        ValueError: for a setting that does not belong to the type or is out of its range.
    """

    type: str = "rank"  # a name in VARIANTS, or "dense"
    rank: float | None = None
    sparsity: float | None = None
    alpha: float = 0.5  # share of primary filters, in (0, 1]
    compute: str = "auto"  # how the layer is evaluated, one of linearconv.COMPUTE_MODES
    pruning: str = "gradual"  # controller of sparse layers, one of linearconv_sparse.SCHEDULES

    def __post_init__(self) -> None:
        types = (*VARIANTS, "dense")
        if self.type not in types:
            raise ValueError(f"type must be one of {', '.join(types)}, got {self.type!r}")
        for name in ("rank", "sparsity"):
            owners = [owner for owner, entry in VARIANTS.items() if entry.setting == name]
            if getattr(self, name) is not None and self.type not in owners:
                raise ValueError(f"{name} has no meaning with type {self.type}: it belongs to {' and '.join(owners)}")
        LinearConv(1, 1, 1, device="meta", alpha=self.alpha, compute=self.compute)  # the layer checks the settings
        if self.type != "dense":
            entry = VARIANTS[self.type]
            value = getattr(self, entry.setting)
            if value is None:
                value = entry.default
            elif isinstance(entry.default, int) and float(value).is_integer():  # command lines give floats
                value = int(value)
            object.__setattr__(self, entry.setting, value)
            self.conv(1, 1, 1, device="meta")

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Variant":
        """Return the variant given by the options of :func:`add_options`; raises what :class:`Variant` raises."""
        given = vars(options)
        return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """A function that takes the arguments of nn.Conv2d and returns the layer with its setting."""
        if self.type == "dense":
            return nn.Conv2d
        entry = VARIANTS[self.type]
        settings = {argument: getattr(self, field) for argument, field in entry.arguments.items()}
        return partial(entry.layer, alpha=self.alpha, compute=self.compute, **settings)

    def build(self, network: Callable[..., nn.Module], **arguments: object) -> nn.Module:
        """Return a network with this layer as its convolutions."""
        return network(conv=self.conv, **arguments)

    @property
    def label(self) -> str:
        """Type and setting, for the names of runs: `rank0.5`, `lowrank10`, `sparse0.25`, `dense`."""
        return "dense" if self.type == "dense" else f"{self.type}{getattr(self, VARIANTS[self.type].setting):g}"

    def __str__(self) -> str:
        if self.type == "dense":
            return "dense (nn.Conv2d)"
        title = "full rank" if self.label == "rank1" else VARIANTS[self.type].title.format(**vars(self))
        return f"LinearConv, {title}, alpha {self.alpha:g}"


def add_options(
    parser: argparse.ArgumentParser,
    types: Iterable[str] | None = None,
    several: bool = False,
    others: dict[str, str] | None = None,
    usual_ranks: str = "",
) -> None:
    """Add -t, -r, -s, --alpha and --compute to a parser or an argument group.

    Args:
        types: types to choose from. Default: all variants and `dense`
        several: accept lists for -t, -r, -s and --alpha, with None as their default, for sweeps.
        others: further types, {name: meaning}.
        usual_ranks: replaces the default of -r in the help.
    """
    meanings = {name: entry.help for name, entry in VARIANTS.items()} | {"dense": "the plain network"}
    meanings = {name: meanings[name] for name in types or meanings} | (others or {})
    lists: dict[str, Any] = {"nargs": "+"} if several else {}
    add = parser.add_argument
    help = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
    add("-t", "--type", choices=tuple(meanings), default=None if several else "rank", help=help, **lists)
    for option, setting in (("-r", "rank"), ("-s", "sparsity")):
        owners = {name: entry for name, entry in VARIANTS.items() if entry.setting == setting}
        values = ", ".join(f"{entry.values} for {name}" for name, entry in owners.items())
        usual = f"default: {', '.join(f'{entry.default:g}' for entry in owners.values())}"
        usual = usual_ranks if usual_ranks and setting == "rank" else usual
        add(option, f"--{setting}", type=float, help=f"{values} ({usual})", **lists)
    help = "share of primary filters, in (0, 1] (default: 0.5)"
    add("--alpha", type=float, default=None if several else 0.5, help=help, **lists)
    add("--compute", choices=COMPUTE_MODES, default="auto", help="how LinearConv is evaluated (default: auto)")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr, with exit code 2."""

    def error(self, message: object) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(str(message).split())} (--help lists the options)\n")


# ---- numbers of a command line, as types for argparse ---------------------------------------------------------------

LARGEST = {int: 2**31 - 1, float: 3e38}  # 32 bits hold larger numbers neither as int nor as float


def _number(kind, is_allowed, allowed):
    def parse(text):
        value = kind(text)
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        if value > LARGEST[kind]:
            raise argparse.ArgumentTypeError(f"must be at most {LARGEST[kind]:g}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse prints this name for a text that is not a number
    return parse


positive_int = _number(int, lambda value: value >= 1, "at least 1")
positive_float = _number(float, lambda value: value > 0, "a positive number")
non_negative_int = _number(int, lambda value: value >= 0, "at least 0")
non_negative_float = _number(float, lambda value: value >= 0, "a number of at least 0")
share = _number(float, lambda value: 0 <= value < 1, "in [0, 1)")
positive_share = _number(float, lambda value: 0 < value <= 1, "in (0, 1]")
