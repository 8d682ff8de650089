"""A network made smaller learns from the one it was made of: no labels, a minute of training.

    loss = BCE(student(x), teacher(x))

with what the teacher gives, numbers in (0, 1), as targets of binary cross-entropy. Adam, its rate rising over the first
tenth of the time and falling to zero over the rest. BatchNorm keeps its statistics, as batches are small.
"""

import time
from collections.abc import Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

LEARNING_RATE = 1e-3
WARM_UP = 0.1  # share of the time in which the rate rises
LEAST = 1e-3  # share of the rate that a step has at least


def distill(student: nn.Module, teacher: nn.Module, batches: Iterator[Tensor], seconds: float) -> dict[str, float]:
    """Train a network, in place, to give what another one gives.

    Time is that of the processor over torch's threads, which on a machine with nothing else to do is that of a clock;
    what else runs does not take from it. Everything counts: making the batches, the teacher's passes and the steps.

    Args:
        student, teacher: of outputs in (0, 1); both in eval mode afterwards.
        batches: of inputs, without end.
        seconds: to train for.

    Returns:
        The number of `steps`, the `seconds` counted and those of a clock (`wall_seconds`), and the last `loss`.
    """
    student.eval()
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters())
    threads, steps, share = torch.get_num_threads(), 0, 0.0
    begun, wall = time.process_time(), time.perf_counter()
    while share < 1:
        inputs = next(batches)
        with torch.no_grad():
            targets = teacher(inputs)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * max(LEAST, min(share / WARM_UP, (1 - share) / (1 - WARM_UP)))
        loss = F.binary_cross_entropy(student(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        share = (time.process_time() - begun) / threads / seconds
    passed = {"seconds": share * seconds, "wall_seconds": time.perf_counter() - wall}
    return {"steps": steps, **passed, "loss": loss.item()}
