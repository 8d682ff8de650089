"""The check for losses and gradients that are infinite or not a number: such a step must not change the weights."""

import math

import torch
import torch.nn as nn
from torch import Tensor

CHECK_EVERY = 10  # steps, on devices that run asynchronously


class FiniteCheck:
    """Check losses and gradients before each step of an optimizer.

    On a CPU every step is checked. Other devices hold a flag, which the host reads every 10 steps, so that most steps
    do not wait for the host. After the first bad step the optimizer, which must be a fused one, skips all steps.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model, self.optimizer = model, optimizer
        self.every = 1 if device.type == "cpu" else CHECK_EVERY
        self.bad = torch.zeros((), device=device)  # 1 after a bad step
        self.checked = 0

    def check(self, loss: Tensor) -> bool:
        """Return False if a loss () or a gradient of its backward pass has been found not finite."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) + loss.detach()
        if self.every == 1:
            return math.isfinite(norm.item())
        self.bad = torch.maximum(self.bad, 1 - norm.isfinite().float())
        self.optimizer.found_inf = self.bad
        self.checked += 1
        return self.checked % self.every != 0 or not self.bad.item()

    def may_save(self) -> bool:
        """Return False if any step, or a parameter or buffer now, is not finite: the last step may overflow."""
        are_finite = [tensor.isfinite().all() for tensor in self.model.state_dict().values()]
        return not self.bad.item() and bool(torch.stack(are_finite).all())

    def bad_layers(self) -> list[str]:
        """Return the names of the layers whose parameters or gradients are currently not finite."""
        names = set()
        for name, parameter in self.model.named_parameters():
            tensors = (parameter, parameter.grad)
            if not all(tensor.detach().isfinite().all() for tensor in tensors if tensor is not None):
                names.add(name.rpartition(".")[0] or name)
        return sorted(names)
