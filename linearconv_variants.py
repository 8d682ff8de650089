"""The variants of LinearConv by the names that command lines give them: what `-t`, `-r` and `-s` stand for."""

from functools import partial

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse

LINEARCONV_TYPES = ("rank", "lowrank", "sparse")


def linear_conv(type, *, rank=None, sparsity=None, schedule="gradual", **shared):
    """A LinearConv of one variant and setting, to be called with the arguments of nn.Conv2d.

    Args:
        type (str): `"rank"`: A of rank `rank` as a share of the primary filters, in (0, 1], 1 (the default) being the
            vanilla full-rank layer; `"lowrank"`: A of constant rank `rank`, 10 where left out; `"sparse"`: A of which
            the share `sparsity` in [0, 1) is pruned, 0.25 where left out, by the controller `schedule`.
        **shared: `alpha` and `compute`, as every variant takes them.

    Raises:
        ValueError: for an unknown type, or a setting that does not belong to it or is out of its range.
    """
    if type not in LINEARCONV_TYPES:
        raise ValueError(f"type must be one of {', '.join(LINEARCONV_TYPES)}, got {type!r}")
    if type == "sparse" and rank is not None:
        raise ValueError("rank has no meaning for type 'sparse': it belongs to 'rank' and 'lowrank'")
    if type != "sparse" and sparsity is not None:
        raise ValueError(f"sparsity has no meaning for type {type!r}: it belongs to 'sparse'")
    if type == "sparse":
        conv = partial(LinearConvSparse, sparsity=0.25 if sparsity is None else sparsity, schedule=schedule, **shared)
    elif type == "lowrank":
        conv = partial(LinearConvLowRank, rank=10 if rank is None else rank, **shared)
    elif rank is None or rank == 1:
        conv = partial(LinearConv, **shared)
    else:
        conv = partial(LinearConvRankRatio, rank=rank, **shared)
    conv(1, 1, 1, device="meta")  # a setting that is out of range is told here and not at the first layer
    return conv
