"""The networks, tasks and layers of the benchmarks."""

from functools import partial
from types import MethodType

import torch
import torch.nn as nn
import torch.nn.functional as F

from experiments import paper
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank

NETWORKS = {name.replace("-", ""): network for name, network in paper.NETWORKS.items()}
VARIANTS = {"full rank": LinearConv, "rank 10": partial(LinearConvLowRank, rank=10)}
TRAINING = {"train 50": 50, "train 256": 256, "train 1024": 1024}  # images in a step
INFERENCE = {"infer 1": 1, "infer 8": 8, "infer 50": 50, "infer 256": 256, "infer 1024": 1024}  # images in a batch
TASKS = TRAINING | INFERENCE
IMAGE = (3, 32, 32)


def as_in_the_paper(*arguments: object, **keywords: object) -> LinearConv:
    """Return a full-rank LinearConv with the published evaluation, which builds all filters in every pass."""
    layer = LinearConv(*arguments, **keywords)
    layer.forward = MethodType(_build_filters_and_convolve, layer)
    return layer


def _build_filters_and_convolve(layer, input):
    primary = layer.conv_weights
    secondary = layer.linear_weights @ primary.flatten(1)  # (F - P, K)
    filters = torch.cat((primary, secondary.view(-1, *primary.shape[1:])))
    return F.conv2d(input, filters, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


CONTENDERS = {"dense": nn.Conv2d, **VARIANTS, "full rank, as in the paper": as_in_the_paper}
