"""How a method takes the place of nn.Conv2d: built from a plain convolution, where it suits and saves weights.

partial(drop_in, to_basis)(256, 512, 3, padding=1)      # called as nn.Conv2d is
"""

from collections.abc import Callable

import torch.nn as nn

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


def drop_in(make: Callable[[nn.Conv2d], nn.Module], *arguments: object, **keywords: object) -> nn.Module:
    """Return `make(plain)` for the plain convolution of these arguments, or `plain` itself.

    It stays where it has groups, which no method here cuts further, and where the method would have no fewer weights:
    in thin layers, and for some methods in 1x1 ones.

    Args:
        make: the method, a function of an nn.Conv2d that may return that.
        arguments, keywords: of nn.Conv2d.
    """
    plain = nn.Conv2d(*arguments, **keywords)
    made = make(plain) if plain.groups == 1 else plain
    return made if _weights(made) < _weights(plain) else plain


def _weights(module):
    """Elements of all convolutions' weights: biases and BatchNorm change little."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))


def like(plain: nn.Conv2d, in_channels: int, out_channels: int, bias: bool | None = None) -> nn.Conv2d:
    """Return a convolution of the geometry, device and dtype of `plain`, with torch's default initial weights.

    Args:
        plain: the model.
        in_channels, out_channels: of the new one.
        bias: left out, as `plain` has it.
    """
    geometry = {name: getattr(plain, name) for name in GEOMETRY}
    bias = plain.bias is not None if bias is None else bias
    return nn.Conv2d(in_channels, out_channels, **geometry, bias=bias, **factory(plain))


def factory(plain: nn.Conv2d) -> dict[str, object]:
    """Return device and dtype of a convolution, as keyword arguments of another layer."""
    return {"device": plain.weight.device, "dtype": plain.weight.dtype}
