"""The objective of a training step: a loss of the logits, and in every 10th step the regularisers of corr_reg.py.

    loss = (1 - d) CE(labels, s) + d T^2 KL(softmax(t / T) || softmax(s / T)),    s, t: logits of network and teacher

d is `--distill`, 0 without a teacher. Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network",
2015 (arXiv 1503.02531). The factor T^2 keeps the size of the second term's gradients independent of T.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from corr_reg import corr_loss, l1_loss
from linearconv import LinearConv
from training.distributed import Group
from training.recipe import Recipe

REGULARISE_EVERY = 10  # batches


def loss_of(logits: Tensor, images: Tensor, labels: Tensor, recipe: Recipe, teacher: nn.Module | None) -> Tensor:
    """Return the mean loss () of a batch: logits (B, classes), images (B, C, H, W), labels (B,).

    The teacher computes the soft targets; None if their share is 0.
    """
    loss = 0.0
    if recipe.distill < 1:
        loss = (1 - recipe.distill) * F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if recipe.distill:
        with torch.no_grad():
            targets = teacher(images)
        ours, theirs = (F.log_softmax(values / recipe.temperature, dim=1) for values in (logits, targets))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        loss = loss + recipe.distill * (recipe.temperature**2 * divergence)
    return loss


def regularisers(model: nn.Module, recipe: Recipe, group: Group) -> Tensor | float:
    """Return the weighted regularisers of a network; each process computes its part of the layers."""
    if not recipe.reg_weight:
        return 0.0
    if group.size == 1:
        return recipe.reg_weight * (corr_loss(model) + l1_loss(model))
    layers = [layer for layer in model.modules() if isinstance(layer, LinearConv)]
    mine = layers[group.rank :: group.size]  # multiplied by the number of processes, over which gradients are averaged
    return recipe.reg_weight * (group.size * sum((corr_loss(layer) + l1_loss(layer) for layer in mine), start=0.0))
