"""Learned filter basis: groups of input channels share a small set of filters, and a 1x1 convolution combines the maps.

Li, Gu, Van Gool & Timofte, "Learning Filter Basis for Convolutional Neural Network Compression", ICCV 2019
(arXiv 1908.08932).

    BasisConv(nn.Conv2d(256, 512, 3, padding=1))        # 2 groups of 128 channels, 128 filters; 256 maps to 512

With B filters of depth S, the layer has S B kh kw + (C / S) B F weights instead of C F kh kw. As published, BatchNorm
and ReLU are between the two factors, so that no single convolution is equivalent.
"""

import torch.nn as nn
from torch import Tensor

from baselines.drop_in import like

BASIS_SIZE = 128  # S, channels of a group
N_BASIS = 128  # B, filters


class BasisConv(nn.Module):
    """A filter basis that replaces a convolution without groups, whose input channels are a multiple of BASIS_SIZE."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.groups = plain.in_channels // BASIS_SIZE
        maps = self.groups * N_BASIS
        self.basis = like(plain, BASIS_SIZE, N_BASIS)
        self.norm = nn.BatchNorm2d(maps)
        self.relu = nn.ReLU(inplace=True)
        self.combine = nn.Conv2d(maps, plain.out_channels, 1, bias=plain.bias is not None)

    def forward(self, input: Tensor) -> Tensor:
        of_groups = input.unflatten(1, (self.groups, -1)).flatten(0, 1)  # (N G, S, H, W)
        maps = self.basis(of_groups).unflatten(0, (-1, self.groups)).flatten(1, 2)  # (N, G B, H', W')
        return self.combine(self.relu(self.norm(maps)))


def to_basis(plain: nn.Conv2d, alpha: float) -> nn.Module:
    """Return a :class:`BasisConv`, or `plain` if its input channels are not a multiple of 128; `alpha` is ignored."""
    return plain if plain.in_channels % BASIS_SIZE else BasisConv(plain)
