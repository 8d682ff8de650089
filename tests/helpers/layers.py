"""The variants that tests run over, and an independent computation of what a LinearConv layer must give."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse

VARIANTS = {
    "full": LinearConv,
    "lowrank": partial(LinearConvLowRank, rank=2),
    "rankratio": partial(LinearConvRankRatio, rank=0.5),
    "sparse": partial(LinearConvSparse, sparsity=0.5),
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
computes = pytest.mark.parametrize("compute", ("filters", "features"))


def explicit_filters(layer):
    """All filters (F, C/groups, kh, kw) in float64, from the state_dict alone and by numpy."""
    state = {name: tensor.detach().double().numpy() for name, tensor in layer.state_dict().items()}
    primary = layer.conv_weights.detach().double().numpy()  # parametrized ones are not in the state_dict
    if "column_weights" in state:
        coefficients = state["column_weights"] @ state["row_weights"]
    else:
        coefficients = state["linear_weights"] * state.get("mask", 1.0)
    secondary = np.einsum("sp,pchw->schw", coefficients, primary)
    return torch.from_numpy(np.concatenate([primary, secondary]))


def reference(layer, input):
    """The layer's output in float64: plain F.conv2d with explicitly built filters."""
    input, padding = input.detach().double(), layer.padding
    if layer.padding_mode != "zeros":
        kh, kw = layer.kernel_size
        dh, dw = layer.dilation
        if padding == "same":
            total_h, total_w = dh * (kh - 1), dw * (kw - 1)
            widths = (total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2)
        else:
            widths = (padding[1], padding[1], padding[0], padding[0])
        input, padding = F.pad(input, widths, mode=layer.padding_mode), 0
    bias = None if layer.bias is None else layer.bias.detach().double()
    return F.conv2d(input, explicit_filters(layer), bias, layer.stride, padding, layer.dilation, layer.groups)


def relative_error(ours, theirs):
    """Largest absolute difference over the largest magnitude of `theirs`."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30)).item()


def prune_half(layer):
    """Give a sparse layer a mask that is neither full nor empty; other variants are left as they are."""
    if isinstance(layer, LinearConvSparse):
        layer.mask.copy_(torch.arange(layer.mask.numel()).view_as(layer.mask) % 2)
    return layer
