"""Deployment: a form of the model for inference from plain torch modules, with the cheaper evaluation of each layer."""

import warnings
from functools import reduce

import torch
import torch.nn as nn
from torch import fx

from linearconv import GEOMETRY, MAP_COST
from linearconv_convert import surgery
from linearconv_convert.adapters import Conv2dAdapter, SamePad2d
from linearconv_convert.folding import fuse, replace_layers
from linearconv_convert.inputs import Verification, known_call
from linearconv_convert.surgery import ConversionError, ConversionWarning

MAX_COEFFICIENT = 1e2  # in A after folding; larger coefficients amplify rounding errors


def deploy(model: nn.Module, *, example_input: object = None, channels_last: bool = True) -> nn.Module:
    """Return a form of a model for inference: a new model of plain torch modules, with outputs equal up to rounding.

    Every LinearConv becomes the cheaper of two forms: an nn.Conv2d with all filters (always on a CUDA device), or a
    torch.fx.GraphModule that convolves with the primary filters, combines their feature maps by 1x1 convolutions, and
    concatenates all feature maps. BatchNorm is folded as by :func:`fold`, except if coefficients would exceed 100
    because the scale of a primary channel is almost zero. The new model is in eval mode, its parameters have no
    gradients, and it runs, pickles and loads without this package. If it fails the verification, BatchNorm is not
    folded, or all layers become nn.Conv2d, and a ConversionWarning gives the reason.

    Args:
        model: any model; it is not changed.
        example_input: an input to verify the new model: images (N, C, H, W), a tuple of all arguments, or a dict of
            them by name. Default: random images, if the model takes them; if not, a ConversionWarning says so
        channels_last: keep the filters, and thereby the feature maps, in the channels_last memory format, which is
            faster on CPUs. Use False if a forward pass flattens feature maps by `view`.

    Raises:
        ConversionError: for a model that is scripted, compiled, wrapped or lazy, or if the outputs differ by more than
            1e-4 (8 epsilons of a data type of low precision) relative to the largest output.
    """
    surgery.check_model(model)
    verification = Verification(model, known_call(model, example_input))
    verification.warn_if_unknown()
    difference = ""
    for new_layer, batch_norm in ((_deployed_layer, True), (_deployed_layer, False), (fuse, False)):
        before = difference
        try:
            deployed = replace_layers(surgery.copy_of(model).eval(), new_layer, batch_norm)
            own_modules = surgery.layers_of(deployed, (SamePad2d, Conv2dAdapter)).values()
            deployed = surgery.replace(deployed, {module: fx.symbolic_trace(module) for module in own_modules})
            if channels_last:
                for conv in surgery.layers_of(deployed, nn.Conv2d).values():
                    conv.to(memory_format=torch.channels_last)
            difference = verification.difference(deployed)
        except ConversionError as error:
            difference = str(error)
        if not difference:
            if before:
                what = "no BatchNorm was folded" if new_layer is _deployed_layer else "all layers became nn.Conv2d"
                warnings.warn(f"{what}: {before}", ConversionWarning, stacklevel=2)
            return deployed.eval().requires_grad_(False)
    raise ConversionError(f"the deployed model is not equal to the model: {difference}")


class _Pair(nn.Module):
    """The primary feature maps, concatenated with the secondary feature maps."""

    def __init__(self, primary, combinations):
        super().__init__()
        self.primary, self.secondary = primary, nn.Sequential(*combinations)

    def forward(self, input):
        primary = self.primary(input)  # (N, P, H', W')
        return torch.cat((primary, self.secondary(primary)), dim=-3)  # (N, F, H', W')


@torch.no_grad()
def _deployed_layer(layer, norm=None):
    """The cheaper form of a LinearConv and the BatchNorm after it; None if the BatchNorm cannot be folded into it.

    [y_p ; A y_p + b_s - A b_p], where a BatchNorm scales the rows of W_p by s_p, and A to s_s A / s_p.
    """
    precise = torch.promote_types(layer.conv_weights.dtype, torch.float64)
    factors = [factor.to(precise) for factor in layer.factors()]
    product = reduce(torch.matmul, factors)
    if product.numel() <= sum(factor.numel() for factor in factors):
        factors = [product]
    coefficients = sum(factor.numel() for factor in factors)
    saved = layer.secondary_channels * layer.filter_size - coefficients - MAP_COST * layer.out_channels
    if saved <= 0 or layer.groups > 1 or layer.conv_weights.is_cuda:
        return fuse(layer, norm)
    scale = torch.ones(layer.out_channels, dtype=precise, device=layer.conv_weights.device)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.to(scale)
    if norm is not None:
        scale = (norm.running_var.to(scale) + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        bias = (bias - norm.running_mean) * scale + (0 if norm.bias is None else norm.bias)
    sizes = layer.primary_channels, layer.secondary_channels
    (scale_primary, scale_secondary), (bias_primary, bias_secondary) = scale.split(sizes), bias.split(sizes)
    factors[0] = scale_secondary[:, None] * factors[0]
    factors[-1] = factors[-1] / scale_primary
    product = reduce(torch.matmul, factors)
    if norm is not None and not product.abs().amax() <= MAX_COEFFICIENT:  # or NaN, for a scale of 0
        return None
    geometry = {name: getattr(layer, name) for name in GEOMETRY} | {"out_channels": layer.primary_channels}
    filters = layer.conv_weights * scale_primary[:, None, None, None]
    primary = _convolution(filters, bias_primary, layer.conv_weights, geometry)
    shifts = [None] * (len(factors) - 1) + [bias_secondary - product @ bias_primary]
    combinations = []
    for factor, shift in zip(reversed(factors), shifts, strict=True):
        shape = {"in_channels": factor.shape[1], "out_channels": factor.shape[0], "kernel_size": 1}
        combinations.append(_convolution(factor[:, :, None, None], shift, layer.conv_weights, shape))
    return fx.symbolic_trace(_Pair(primary, combinations))


def _convolution(weight, bias, like, geometry):
    """An nn.Conv2d with these parameters, in the dtype and on the device of `like`."""
    conv = nn.Conv2d(**geometry, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.to(like))
    conv.bias = None if bias is None else nn.Parameter(bias.to(like))
    return conv
