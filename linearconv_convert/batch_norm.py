"""Correction of BatchNorm after a calibrated conversion: its statistics change as much as the moments of its inputs.

    mean <- mean + mean' - mean_0        var <- var (var' + eps) / (var_0 + eps)

mean_0 and var_0 are the moments of the inputs on the calibration images before the conversion, mean' and var' after it.
The difference is more precise than the moments themselves if there are few images.
"""

from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from linearconv_convert.inputs import calibration_calls
from linearconv_convert.surgery import copy_of, layers_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def correct_batch_norm(converted: nn.Module, original: nn.Module, calibration: object) -> None:
    """Change the statistics of BatchNorm in a converted model by the differences from the original model, in place."""
    before, after = (refresh_batch_norm(copy_of(model), calibration) for model in (original, converted))
    for name in before.keys() & after.keys():
        norm: Any = converted.get_submodule(name)
        (old_mean, old_var), (new_mean, new_var) = before[name], after[name]
        norm.running_mean += new_mean - old_mean
        norm.running_var *= (new_var + norm.eps) / (old_var + norm.eps)


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, calibration: object) -> dict[str, tuple[Tensor, Tensor]]:
    """Set the statistics of BatchNorm to the moments of its inputs on calibration images, in place, in eval mode.

    Returns:
        The new statistics, {name: (mean, variance)}, in float64. A layer with one position in the calibration has no
        variance, and keeps its statistics.
    """
    norms = {name: norm for name, norm in layers_of(model, NORMS).items() if norm.running_mean is not None}
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    moments: dict[str, tuple[Tensor, Tensor]] = {}

    def add_input(name, norm, args):  # before the layer normalises the input
        rows = args[0].movedim(1, -1).flatten(0, -2).double()  # (positions, C)
        zeros = torch.zeros_like(rows[0])
        count, first, second = sums.get(name, (0, zeros, zeros))
        count, first, second = count + len(rows), first + rows.sum(0), second + rows.square().sum(0)
        sums[name] = count, first, second
        if count > 1:
            mean = first / count
            moments[name] = mean, (second / count - mean.square()).clamp_min(0)
            norm.running_mean.copy_(moments[name][0])
            norm.running_var.copy_(moments[name][1])

    hooks = [norm.register_forward_pre_hook(partial(add_input, name)) for name, norm in norms.items()]
    try:
        model.eval()
        for call in calibration_calls(model, calibration):
            call.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return moments
