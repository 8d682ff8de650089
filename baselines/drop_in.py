"""Networks whose convolutions are the layers of a method, where the method applies and saves weights."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn

Replace = Callable[[nn.Conv2d, float], nn.Module]  # (plain, alpha): a layer, or `plain` if the method does not apply


def drop_in(replace: Replace, alpha: float, *arguments: object, **keywords: object) -> nn.Module:
    """Return the layer of a method for the arguments of nn.Conv2d, or a plain nn.Conv2d.

    A convolution stays plain if it has groups, which no method here divides further, or if the method would not reduce
    its weights. The latter holds for thin layers, and with some methods for 1x1 convolutions.
    """
    plain = nn.Conv2d(*arguments, **keywords)
    layer = replace(plain, alpha) if plain.groups == 1 else plain
    return layer if _weights(layer) < _weights(plain) else plain


def build_with_layers(
    replace: Replace, network: Callable[..., nn.Module], alpha: float, **arguments: object
) -> nn.Module:
    """Return `network(conv=..., **arguments)`, for which :func:`drop_in` builds the convolutions.

    Raises:
        ValueError: if every convolution stays plain.
    """
    model = network(conv=partial(drop_in, replace, alpha), **arguments)
    with torch.device("meta"):
        plain = network(conv=nn.Conv2d, **arguments)
    if _weights(model) == _weights(plain):
        reason = "all are grouped, or too thin or too small"
        raise ValueError(f"the method replaces no convolution of this {type(model).__name__}: {reason}")
    return model


def _weights(module):
    """The number of weights of all convolutions; biases and BatchNorm are negligible."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))


def like(plain: nn.Conv2d, in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """Return a convolution with the geometry of `plain`, other channels and torch's initial weights.

    It has a bias if `plain` has one, except with `bias=False`.
    """
    geometry = plain.kernel_size, plain.stride, plain.padding, plain.dilation
    has_bias = bias and plain.bias is not None
    return nn.Conv2d(in_channels, out_channels, *geometry, bias=has_bias, padding_mode=plain.padding_mode)
