"""What the benchmarks time: the networks, the variants, and the other ways to evaluate or to replace a convolution."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType

import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse
from models.allconv_xcnn import AllConv
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from models.vgg_xcnn import VGG11

try:
    from tltorch import FactorizedConv
except ImportError:
    FactorizedConv = None

NETWORKS = {
    "VGG11": VGG11,
    "ResNet18": ResNet18,
    "AllConv": AllConv,
    "Base": Base,
    "MobileNetV2": MobileNetV2,
    "ResNeXt29": ResNeXt29_2x64d,
}
VARIANTS = {"full rank": LinearConv, "rank 10": partial(LinearConvLowRank, rank=10)}
OTHER_VARIANTS = {"half rank": partial(LinearConvRankRatio, rank=0.5), "sparse": LinearConvSparse}
TUCKER = "Tucker (tensorly-torch)"
MODES = ("paper", "filters", "features", "auto")
FIXED, WITH_EVAL, MANY_SIZES = "infer 8", "infer 8, eval() before", "infer 8, 35 sizes"  # eval() before every pass
CONDITIONS = (FIXED, WITH_EVAL, MANY_SIZES)  # under which what is kept between passes is of use, or not
COMMON = {"train 50": 50, "train 256": 256, "infer 50": 50, "infer 1": 1, "infer 256": 256}  # batch size
LARGE = {"train 1024": 1024, "infer 1024": 1024}  # for GPUs
TASKS = COMMON | LARGE | dict.fromkeys(CONDITIONS, 8)
IMAGE = (3, 32, 32)
SIZES = tuple(itertools.product(range(32, 37), range(32, 39)))  # of MANY_SIZES, which takes them in turns


def contenders(modes: Sequence[str], compiled: bool, captured: bool = False) -> dict[str, Callable[..., nn.Module]]:
    """Return name and convolution of everything that is timed; the first is what the others are compared with.

    Args:
        modes: of `MODES`.
        compiled: dense and auto only, each also under a name that ends in `compiled`.
        captured: leave out what cannot be captured in a CUDA graph: sparse, which chooses masks as it trains.
    """
    convs = {"dense": nn.Conv2d}
    if compiled:
        ours = {f"full rank, auto{how}": LinearConv for how in ("", ", compiled")}
        return convs | {"dense, compiled": nn.Conv2d} | ours
    for name, conv in VARIANTS.items():
        for mode in modes:
            convs[f"{name}, {mode}"] = partial(_paper, conv) if mode == "paper" else partial(conv, compute=mode)
    if "auto" in modes:
        convs |= {f"{name}, auto": conv for name, conv in OTHER_VARIANTS.items() if not captured or name != "sparse"}
    if FactorizedConv:
        convs[TUCKER] = _tucker
    return convs


def _paper(conv, *arguments, **keywords):
    """A LinearConv that is evaluated as published."""
    layer = conv(*arguments, compute="filters", **keywords)
    layer.forward = MethodType(_make_filters_and_convolve, layer)
    return layer


def _make_filters_and_convolve(layer, input):
    secondary = layer.conv_weights.flatten(1)  # (P, K)
    for factor in reversed(layer.factors()):
        secondary = factor @ secondary  # at last (F - P, K)
    secondary = secondary.view(-1, *layer.conv_weights.shape[1:])
    filters = torch.cat((layer.conv_weights, secondary))
    return F.conv2d(input, filters, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _tucker(in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1, bias=True):
    if groups > 1 or in_channels < 4:  # not supported, or nothing to save
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
    arguments = {"order": 2, "rank": 0.5, "factorization": "tucker", "implementation": "factorized"}
    layer = FactorizedConv(
        in_channels, out_channels, kernel_size, stride=stride, padding=padding, has_bias=bias, **arguments
    )
    layer.weight.normal_(0, 0.02)
    return layer
