"""Ghost module: a convolution computes a part of the feature maps, and a depthwise convolution computes the others.

Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020 (arXiv 1911.11907).

    GhostConv(nn.Conv2d(64, 128, 3, padding=1))         # 64 intrinsic maps, and a ghost of each by 3x3 filters

Intrinsic maps correspond to LinearConv's primary filters, but a ghost is one filtered map, not a combination of all
maps. As published, neither convolution has a bias. As in the paper's formula, no layer is between them, and the
network's BatchNorm and ReLU follow on all maps; the published code also has both after the intrinsic maps.
"""

import torch
import torch.nn as nn
from torch import Tensor

from baselines.drop_in import like


class GhostConv(nn.Module):
    """A Ghost module that replaces a convolution.

    Args:
        plain: the convolution that provides channels and geometry.
        alpha: share of intrinsic maps. `max(1, int(alpha * out_channels))` channels are intrinsic and come first; the
            others, at least one, are ghosts of the intrinsic maps in turn. 1/2 is the published s = 2.
    """

    def __init__(self, plain: nn.Conv2d, alpha: float = 0.5) -> None:
        super().__init__()
        intrinsic = max(1, int(alpha * plain.out_channels))
        self.ghosts = plain.out_channels - intrinsic
        self.rounds = -(-self.ghosts // intrinsic)  # number of ghosts of the first intrinsic map
        self.intrinsic = like(plain, plain.in_channels, intrinsic, bias=False)
        self.cheap = nn.Conv2d(self.ghosts, self.ghosts, 3, padding=1, groups=self.ghosts, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        intrinsic = self.intrinsic(input)  # (N, m, H', W')
        sources = torch.cat([intrinsic] * self.rounds, 1) if self.rounds > 1 else intrinsic
        return torch.cat((intrinsic, self.cheap(sources[:, : self.ghosts])), 1)


def to_ghost(plain: nn.Conv2d, alpha: float) -> nn.Module:
    """Return a :class:`GhostConv`, or `plain` if no channel would be a ghost."""
    return plain if max(1, int(alpha * plain.out_channels)) == plain.out_channels else GhostConv(plain, alpha)
