"""Correction of BatchNorm after a calibrated conversion: its statistics change as much as the moments of its inputs.

    mean <- mean + mean' - mean_0        var <- var (var' + eps) / (var_0 + eps)

mean_0 and var_0 are the moments of the inputs on the calibration images before the conversion, mean' and var' after it.
The difference is more precise than the moments themselves if there are few images.
"""

import torch
import torch.nn as nn

from linearconv_convert.inputs import calibration_calls
from linearconv_convert.surgery import copy_of, layers_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def correct_batch_norm(converted: nn.Module, original: nn.Module, calibration: object) -> None:
    """Change the statistics of BatchNorm in a converted model by the differences from the original model, in place."""
    before, after = (_input_moments(copy_of(model), calibration) for model in (original, converted))
    for name in before.keys() & after.keys():
        norm = converted.get_submodule(name)
        (old_mean, old_var), (new_mean, new_var) = before[name], after[name]
        norm.running_mean += new_mean - old_mean
        norm.running_var *= (new_var + norm.eps) / (old_var + norm.eps)


def _input_moments(model, calibration):
    """{name: (mean, variance)} of the inputs of BatchNorm layers, each normalised by its own inputs, in eval mode.

    The statistics of the model change. Layers with one position in the calibration have no variance and are left out.
    """
    sums, moments = {}, {}

    def add_input(name, norm, args):
        rows = args[0].movedim(1, -1).flatten(0, -2).double()  # (positions, C)
        before = sums.get(name, (0, 0, 0))
        count, first, second = before[0] + len(rows), before[1] + rows.sum(0), before[2] + rows.square().sum(0)
        sums[name] = count, first, second
        if count > 1:
            mean = first / count
            variance = (second / count - mean.square()).clamp_min(0)
            moments[name] = mean, variance
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    for name, norm in layers_of(model.eval(), NORMS).items():
        if norm.running_mean is not None:
            norm.register_forward_pre_hook(lambda norm, args, name=name: add_input(name, norm, args))
    for call in calibration_calls(model, calibration):
        call.run(model)
    return moments
