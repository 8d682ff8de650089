"""Octave convolution: a share of the channels has half the resolution, and both parts exchange resampled maps.

Chen et al., "Drop an Octave: Reducing Spatial Redundancy in Convolutional Neural Networks with Octave Convolution",
ICCV 2019 (arXiv 1904.05049).

    model = build_octave(VGG11, alpha=0.5)         # 9,233,802 parameters, 0.45 of the FLOPs

Between the first and the last convolution, the layers pass on pairs (high, low):

    high' = conv(high) + upsample(conv(low))        low' = conv(low) + conv(avg_pool(high))
"""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from baselines.drop_in import like

Pair = tuple[Tensor, Tensor]  # (N, C - c, H, W) and (N, c, H // 2, W // 2)
CHAIN = nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d  # replaceable by layers for pairs


class OctaveConv(nn.Module):
    """An octave convolution that replaces a plain one: up to four convolutions of its geometry, with its bias setting.

    `low_in` of the input channels and `low_out` of the output channels are at half resolution. Input and output are
    pairs, or tensors if there are no such channels.
    """

    def __init__(self, plain: nn.Conv2d, low_in: int, low_out: int) -> None:
        super().__init__()
        high_in, high_out = plain.in_channels - low_in, plain.out_channels - low_out
        self.high_to_high = like(plain, high_in, high_out)
        self.high_to_low = like(plain, high_in, low_out) if low_out else None
        self.low_to_high = like(plain, low_in, high_out) if low_in else None
        self.low_to_low = like(plain, low_in, low_out) if low_in and low_out else None

    def forward(self, parts: Tensor | Pair) -> Tensor | Pair:
        high, low = parts if self.low_to_high else (parts, None)
        new_high = self.high_to_high(high)
        if self.low_to_high:
            new_high = new_high + F.interpolate(self.low_to_high(low), new_high.shape[-2:])  # nearest
        if not self.high_to_low:
            return new_high
        new_low = self.high_to_low(F.avg_pool2d(high, 2))
        if self.low_to_low:
            new_low = new_low + self.low_to_low(low)
        return new_high, new_low


class EachPart(nn.Module):
    """A layer for each part of a pair."""

    def __init__(self, high: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.high, self.low = high, low

    def forward(self, parts: Pair) -> Pair:
        return self.high(parts[0]), self.low(parts[1])


def build_octave(network: Callable[..., nn.Module], alpha: float, **arguments: object) -> nn.Module:
    """Return `network(**arguments)` with octave convolutions.

    Args:
        network: constructor of a network whose convolutions are in one nn.Sequential, nested or not, that otherwise
            holds only BatchNorm2d, ReLU and max-pooling, such as Base and VGG11.
        alpha: share of the channels at half resolution, in (0, 1): `int(alpha * channels)` channels. The input images
            and the output of the last convolution have no such channels.

    Raises:
        ValueError: for any other network or alpha.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"octave needs alpha in (0, 1), got {alpha}")
    model = network(**arguments)
    trunk, low = _trunk(model), 0
    *_, last = (layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d))
    for name, layer in list(trunk.named_modules(remove_duplicate=False)):  # in the order of execution
        if isinstance(layer, nn.Conv2d):
            low_in, low = low, 0 if layer is last else int(alpha * layer.out_channels)
            trunk.set_submodule(name, OctaveConv(layer, low_in, low))
        elif low and isinstance(layer, nn.BatchNorm2d):
            settings = layer.eps, layer.momentum, layer.affine, layer.track_running_stats
            high = nn.BatchNorm2d(layer.num_features - low, *settings)
            trunk.set_submodule(name, EachPart(high, nn.BatchNorm2d(low, *settings)))
        elif low and not isinstance(layer, nn.Sequential):
            trunk.set_submodule(name, EachPart(layer, layer))
    return model


def _trunk(network):
    """The nn.Sequential that holds all convolutions, if all of its layers can pass on pairs."""
    convs = {module for module in network.modules() if isinstance(module, nn.Conv2d)}
    for trunk in network.modules():
        inside = set(trunk.modules())
        if isinstance(trunk, nn.Sequential) and convs and convs <= inside:
            if all(isinstance(module, CHAIN) for module in inside) and all(conv.groups == 1 for conv in convs):
                return trunk
    chain = "convolutions, BatchNorm, ReLU and max-pooling in one nn.Sequential (Base, VGG11)"
    raise ValueError(f"octave needs a network of {chain}, not {type(network).__name__}")
