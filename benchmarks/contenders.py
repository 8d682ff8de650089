"""The networks, tasks and layers of the benchmarks."""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from experiments import paper
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank

NETWORKS = {name.replace("-", ""): network for name, network in paper.NETWORKS.items()}
VARIANTS = {"full rank": LinearConv, "rank 10": partial(LinearConvLowRank, rank=10)}
TRAINING = {"train 50": 50, "train 256": 256, "train 1024": 1024}  # images in a step
INFERENCE = {"infer 1": 1, "infer 8": 8, "infer 50": 50, "infer 256": 256, "infer 1024": 1024}  # images in a batch
TASKS = TRAINING | INFERENCE
IMAGE = (3, 32, 32)


class AsInThePaper(LinearConv):
    """Full-rank LinearConv with the published evaluation, which builds all filters in every pass."""

    def forward(self, input: Tensor) -> Tensor:
        primary = self.conv_weights
        secondary = self.linear_weights @ primary.flatten(1)  # (F - P, K)
        filters = torch.cat((primary, secondary.view(-1, *primary.shape[1:])))
        return F.conv2d(input, filters, self.bias, self.stride, self.padding, self.dilation, self.groups)


CONTENDERS = {"dense": nn.Conv2d, **VARIANTS, "full rank, as in the paper": AsInThePaper}
