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


def regularisers(model: nn.Module, recipe: Recipe) -> Tensor | float:
    """Return the weighted regularisers of a network."""
    return recipe.reg_weight * (corr_loss(model) + l1_loss(model)) if recipe.reg_weight else 0.0
