"""Soft targets: a network learns what another one, its teacher, says of the same images.

    loss = (1 - d) CE(labels, s) + d T^2 KL(softmax(t / T) || softmax(s / T)),    s, t: logits of network and teacher

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531). T^2 keeps the gradients
of the second term as large as they are at T = 1.
"""

import torch.nn.functional as F
from torch import Tensor


def soft_target_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(targets / T) || softmax(logits / T)), the mean over a batch, ().

    Args:
        logits, targets: of the network and of its teacher, (B, classes).
        temperature: T.
    """
    ours, theirs = (F.log_softmax(values / temperature, dim=1) for values in (logits, targets))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
