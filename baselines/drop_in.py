"""Drop-in layers of a method: each is built from a plain nn.Conv2d, if the method applies and saves weights.

partial(drop_in, to_basis)(256, 512, 3, padding=1)      # called like nn.Conv2d
"""

from collections.abc import Callable
from functools import partial

import torch.nn as nn


def drop_in(replace: Callable[[nn.Conv2d], nn.Module], *arguments: object, **keywords: object) -> nn.Module:
    """Return `replace(plain)` for the nn.Conv2d `plain` with these arguments, or `plain` itself.

    A convolution stays plain if it has groups, which no method here divides further, or if the method would not reduce
    its weights. The latter holds for thin layers, and with some methods for 1x1 convolutions.
    """
    plain = nn.Conv2d(*arguments, **keywords)
    made = replace(plain) if plain.groups == 1 else plain
    return made if _weights(made) < _weights(plain) else plain


def build_with_layers(
    layer: type[nn.Module],
    replace: Callable[[nn.Conv2d, float], nn.Module],
    network: Callable[..., nn.Module],
    alpha: float,
    **arguments: object,
) -> nn.Module:
    """Return `network(conv=..., **arguments)`, for which :func:`drop_in` builds the convolutions.

    Args:
        layer: class of the method's layers.
        replace: a function of a plain convolution and alpha that returns a layer, or the plain convolution itself.
        network: constructor with the argument `conv`.
        alpha: share of the method.

    Raises:
        ValueError: if every convolution stays plain.
    """
    model = network(conv=partial(drop_in, partial(replace, alpha=alpha)), **arguments)
    if not any(isinstance(module, layer) for module in model.modules()):
        reason = "all are grouped, or too thin or too small"
        raise ValueError(f"{layer.__name__} replaces no convolution of this {type(model).__name__}: {reason}")
    return model


def _weights(module):
    """The number of weights of all convolutions; biases and BatchNorm are negligible."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))


def like(plain: nn.Conv2d, in_channels: int, out_channels: int, bias: bool | None = None) -> nn.Conv2d:
    """Return a convolution with the geometry, device and dtype of `plain`, other channels and torch's initial weights.

    It has a bias if `plain` has one, unless `bias` decides.
    """
    bias = plain.bias is not None if bias is None else bias
    geometry = plain.kernel_size, plain.stride, plain.padding, plain.dilation
    options = {"bias": bias, "padding_mode": plain.padding_mode, **factory(plain)}
    return nn.Conv2d(in_channels, out_channels, *geometry, **options)


def factory(plain: nn.Conv2d) -> dict[str, object]:
    """Return device and dtype of a convolution, as keyword arguments for another layer."""
    return {"device": plain.weight.device, "dtype": plain.weight.dtype}
