"""The variants by name: defaults, ranges, the layer that each makes, and the options of command lines."""

import pytest
import torch.nn as nn

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse
from linearconv_variants import OneLineParser, Variant, add_options


@pytest.mark.parametrize(
    "variant, kind, setting, label, words",
    [
        (Variant(), LinearConv, {"alpha": 0.5}, "rank1", "LinearConv, full rank, alpha 0.5"),
        (Variant("rank", rank=0.25), LinearConvRankRatio, {"rank": 0.25}, "rank0.25", "rank 0.25 of the primary"),
        (Variant("lowrank"), LinearConvLowRank, {"rank": 10}, "lowrank10", "rank 10"),
        (Variant("lowrank", rank=4.0, alpha=0.25), LinearConvLowRank, {"rank": 4}, "lowrank4", "alpha 0.25"),
        (Variant("sparse"), LinearConvSparse, {"sparsity": 0.25}, "sparse0.25", "pruned to 25%"),
        (Variant("dense"), nn.Conv2d, {}, "dense", "nn.Conv2d"),
    ],
)
def test_a_variant_makes_its_layer(variant, kind, setting, label, words):
    layer = variant.conv(4, 8, 3, padding=1)
    assert type(layer) is kind and variant.label == label and words in str(variant)
    assert {name: getattr(layer, name) for name in setting} == setting


@pytest.mark.parametrize(
    "setting, message",
    [
        (dict(type="full"), "type must be one of rank, lowrank, sparse, dense"),
        (dict(type="rank", rank=0), r"(0, 1]"),
        (dict(type="lowrank", rank=2.5), "integer of at least 1, got 2.5"),
        (dict(type="sparse", sparsity=1), "[0, 1)"),
        (dict(type="sparse", rank=10), "rank has no meaning with type sparse: it belongs to rank and lowrank"),
        (dict(alpha=float("nan")), "alpha must be in (0, 1]"),
        (dict(compute="fast"), "compute must be one of"),
        (dict(type="sparse", pruning="never"), "schedule must be one of"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting, message):
    with pytest.raises(ValueError) as error:
        Variant(**setting)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_schedule_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match="prune_begin=5 <= prune_end=4"):
        LinearConvSparse(4, 8, 3, prune_begin=5, prune_end=4)


def test_options_become_a_variant():
    parser = OneLineParser()
    add_options(parser)
    assert Variant.of(parser.parse_args([])) == Variant("rank", rank=1.0)
    given = parser.parse_args("-t lowrank -r 10 --alpha 0.25 --compute filters".split())
    assert Variant.of(given) == Variant("lowrank", 10, None, 0.25, "filters")
