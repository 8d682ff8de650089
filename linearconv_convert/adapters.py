"""Layers that are equivalent to a plain convolution: nn.Linear, nn.Conv1d, and subclasses of nn.Conv2d that only pad.

:func:`split` separates such a layer into an nn.Conv2d and the module around it: an adapter, or the padding module that
gives equal outputs for random images.
"""

import copy
import itertools
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import GEOMETRY

KINDS = {"conv2d": nn.Conv2d, "conv1d": nn.Conv1d, "linear": nn.Linear}
SIZES = ((11, 12), (12, 15), (17, 14))  # of random test images, in addition to the extent of the filters


class Conv2dAdapter(nn.Module):
    """An nn.Linear as a 1x1 convolution of one-pixel images, or an nn.Conv1d as one of feature maps of height 1."""

    def __init__(self, dimensions: int, conv: Any) -> None:
        super().__init__()
        self.dimensions, self.conv = dimensions, conv  # dimensions of the weight: 2 for nn.Linear, 3 for nn.Conv1d

    @property
    def weight(self) -> torch.Tensor:
        """The filters, with the shape of the layer's weight."""
        return self.conv.weight.flatten(self.dimensions - 1)

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias."""
        return self.conv.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.dimensions == 3:
            return self.conv(input.unsqueeze(-2)).squeeze(-2)
        maps = self.conv(input.reshape(-1, self.conv.in_channels, 1, 1))  # (rows, F, 1, 1)
        return maps.reshape(input.shape[:-1] + (maps.shape[1],))


class SamePad2d(nn.Module):
    """Zero padding to ceil(size / stride) outputs of a convolution, with an odd zero at the end, as in TensorFlow."""

    def __init__(self, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        widths: list[Any] = []
        for axis in (-1, -2):  # F.pad takes the last dimension first
            size, stride = input.shape[axis], self.stride[axis]
            window = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing: Any = (-(-size // stride) - 1) * stride + window - size
            if window < stride:  # otherwise `missing` is never negative
                missing = torch.sym_max(missing, 0)  # unlike max(), torch.sym_max is traceable
            widths += [missing // 2, missing - missing // 2]
        return F.pad(input, widths)


def split(layer: Any) -> Any:
    """Return an nn.Conv2d with a layer's parameters, after a function of it that returns an equivalent layer."""
    if type(layer) is nn.Conv2d:
        return _itself, layer
    if type(layer) is nn.Linear:
        geometry: dict[str, Any] = dict(in_channels=layer.in_features, out_channels=layer.out_features, kernel_size=1)
        return partial(Conv2dAdapter, 2), _conv2d(layer, geometry)
    if type(layer) is nn.Conv1d:
        geometry = {name: getattr(layer, name) for name in GEOMETRY}
        geometry |= {name: (1, *geometry[name]) for name in ("kernel_size", "stride", "dilation")}
        if not isinstance(layer.padding, str):
            geometry["padding"] = (0, *layer.padding)
        return partial(Conv2dAdapter, 3), _conv2d(layer, geometry)
    has_more = set(dir(type(layer))) - set(dir(nn.Conv2d))  # methods, for example, which a network may call
    is_conv2d = isinstance(layer, nn.Conv2d) and not has_more and not layer.weight.is_meta
    if is_conv2d and all(name in ("weight", "bias") for name, _ in layer.named_parameters()):
        geometry = {name: getattr(layer, name) for name in GEOMETRY}
        same = SamePad2d(layer.kernel_size, layer.stride, layer.dilation)
        for padding, pad in itertools.product((layer.padding, 0), (None, *layer.children(), same)):
            conv = _conv2d(layer, geometry | {"padding": padding})
            wrap = _itself if pad is None else partial(nn.Sequential, pad)
            if _outputs_agree(layer, wrap(conv)):
                return wrap, conv
    return None


def _itself(layer):
    return layer


def _conv2d(layer, geometry):
    conv = nn.Conv2d(**geometry, bias=layer.bias is not None, device="meta")
    shape, conv.weight, conv.bias = conv.weight.shape, layer.weight, layer.bias
    if layer.weight.ndim < 4:
        conv.weight = nn.Parameter(layer.weight.detach().view(shape), layer.weight.requires_grad)
        vars(conv.weight).update(vars(layer.weight))
    return conv.train(layer.training)


@torch.no_grad()
def _outputs_agree(layer, other):
    """True if two convolutions have equal outputs for random images, in training mode and in eval mode."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True))
    try:
        layer = copy.deepcopy(layer)  # a forward pass may change the layer
        for training, (height, width) in itertools.product((False, True), SIZES):
            shape = 2, layer.in_channels, height + rows, width + columns
            images = torch.randn(shape, generator=generator).to(layer.weight)
            torch.testing.assert_close(other(images), layer.train(training)(images), rtol=1e-5, atol=1e-6)
    except Exception:  # a subclass may raise any error
        return False
    return True
