"""How a run ends before its time: asked to by a signal, or because its numbers have gone wrong."""

import math
import signal
import threading

import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run was asked to stop and has saved where it stands; `code` is the exit code, 128 + the signal."""

    def __init__(self, number, where):
        super().__init__(f"stopped by {signal.Signals(number).name}; {where}")
        self.code = 128 + number


class NotFinite(Exception):
    """A loss or gradient is infinite or not a number; str() names where and which layers."""


class StopSignals:
    """While it lasts, a first SIGINT or SIGTERM is noted in `asked`, and a second one ends the process at once."""

    def __init__(self):
        self.asked = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.asked = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)


class FiniteCheck:
    """Watches losses and gradients; a step whose numbers are not finite changes no weight.

    On a CPU every step is looked at, on other devices the flag stays there and is read every `every` steps, so that
    no step waits for the host; from the first bad step on the optimizer takes none.

    Args:
        model (nn.Module): the network.
        optimizer (torch.optim.Optimizer): a fused one, which skips a step where its `found_inf` is 1.
        device (torch.device): of both.
    """

    def __init__(self, model, optimizer, device, every=10):
        self.model, self.optimizer = model, optimizer
        self.every = 1 if device.type == "cpu" else every
        self.found = torch.zeros((), device=device)
        self.looked = 0

    def look(self, loss):
        """Look at a loss and the gradients it has left; returns False where a bad number is known of."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float()) + loss.detach()
        if self.every == 1:
            return math.isfinite(norm.item())
        self.found += 1 - norm.isfinite().float()
        self.optimizer.found_inf = self.found.clamp(max=1)
        self.looked += 1
        return self.looked % self.every != 0 or self.all_well()

    def all_well(self):
        """False where a step since the start had bad numbers; waits for the device."""
        return not self.found.item()

    def layers(self):
        """Names of the layers whose parameters or gradients are not finite now."""
        return sorted({
            name.rpartition(".")[0] or name
            for name, parameter in self.model.named_parameters()
            for tensor in (parameter, parameter.grad)
            if tensor is not None and not tensor.detach().isfinite().all()
        })  # fmt: skip
