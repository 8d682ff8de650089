"""Statistics of a model on calibration and example inputs: moments of outputs, output positions, multiply-adds."""

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linearconv_convert.inputs import Call, calibration_calls, tensors_of
from linearconv_convert.surgery import ConversionError, ConversionWarning, eval_with_hooks

SENSITIVITY_IMAGES, SENSITIVITY_BATCH = 512, 16  # number of images for the gradients, and of images at a time
DAMPING = 0.01  # added to the eigenvalues of a sensitivity, whose mean is 1
MIN_POSITIONS = 4  # least calibration positions for each output channel


@dataclass
class Moments:
    """Moments of a layer's outputs y without the bias, over all positions of all images, in float64."""

    second: torch.Tensor  # sum of y y^T, (F, F)
    first: torch.Tensor  # sum of y, (F,)
    count: int = 0  # number of positions
    sensitivity: torch.Tensor | None = None  # sum of g g^T, (F, F), of the gradients g of the network's output by y

    @property
    def mean(self) -> torch.Tensor:
        """Mean of y, (F,)."""
        return self.first / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance of y, (F, F)."""
        return self.second / self.count - torch.outer(self.mean, self.mean)

    @property
    def metric(self) -> torch.Tensor | None:
        """The sensitivity (F, F), scaled to a mean of 1 and damped, as a metric of y; None if it is unknown."""
        if self.sensitivity is None or not 0 < self.sensitivity.diagonal().mean() < math.inf:
            return None
        identity = torch.eye(len(self.first), dtype=torch.float64, device=self.first.device)
        return self.sensitivity / self.sensitivity.diagonal().mean() + DAMPING * identity


@torch.no_grad()
def output_moments(model: nn.Module, layers: dict[str, nn.Module], batches: object) -> dict[str, Moments]:
    """Run calibration batches through a model in eval mode and return the moments of its layers' outputs."""
    moments: dict[str, Moments] = {}

    def add_output(name, layer, output):
        rows = _rows(layer, output)
        if layer.bias is not None:
            rows = rows - layer.bias.double()
        if name not in moments:
            zeros = rows.new_zeros(rows.shape[1], rows.shape[1])
            moments[name] = Moments(zeros, zeros[0].clone())
        moments[name].second += rows.T @ rows
        moments[name].first += rows.sum(0)
        moments[name].count += len(rows)

    with eval_with_hooks(model, layers, add_output):
        for call in calibration_calls(model, batches):
            call.run(model)
    for name, each in moments.items():
        if not each.second.isfinite().all():
            raise ConversionError(f"calibration: the outputs of layer {name!r} on these images are not finite")
    if moments:
        name = max(moments, key=lambda name: len(moments[name].first) / moments[name].count)
        channels, count = len(moments[name].first), moments[name].count
        if count < MIN_POSITIONS * channels:
            text = f"calibration gives only {count} positions of {channels} channels in layer {name!r}, too few for its"
            text += f" statistics: give {math.ceil(MIN_POSITIONS * channels / count)} times as many images"
            warnings.warn(text, ConversionWarning, stacklevel=4)  # the decorator of this function is a level, too
    return moments


def _rows(layer, maps):
    """Feature maps (..., F, H, W), (..., F, L) or (..., F) of a layer as rows (positions, F), in float64."""
    return maps.movedim(1 - layer.weight.ndim, -1).reshape(-1, len(layer.weight)).double()


def add_sensitivities(model: nn.Module, layers: dict[str, Any], moments: dict[str, Moments], call: Call) -> None:
    """Add to moments the sensitivity of the network's output to the outputs of layers, where it can be differentiated.

    The gradients are those of random projections of the output tensors. A tensor (N, K) is taken for logits: its
    gradients are those of the log-probability of a class that is drawn with the network's probabilities, which makes
    the sensitivity a Fisher information. All parameters of the model require gradients afterwards.
    """
    generator = torch.Generator().manual_seed(0)

    def add_gradient(name, gradient):
        rows, each = _rows(layers[name], gradient), moments[name]
        each.sensitivity = rows.T @ rows + (0 if each.sensitivity is None else each.sensitivity)

    def watch(name, layer, output):
        if output.requires_grad:
            output.register_hook(partial(add_gradient, name))

    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.enable_grad(), eval_with_hooks(model, layers, watch):
            for start in range(0, min(call.batch, SENSITIVITY_IMAGES), SENSITIVITY_BATCH):
                outputs = tensors_of(call.images(slice(start, start + SENSITIVITY_BATCH)).run(model))
                objectives = [_random_objective(output, generator) for output in outputs if output.requires_grad]
                torch.autograd.backward(objectives)
                model.zero_grad()
    except (ConversionError, RuntimeError):  # the model does not run with gradients, or cannot be differentiated
        for each in moments.values():
            each.sensitivity = None


def _random_objective(output, generator):
    """A random number whose gradients have the sensitivity as their second moments."""
    if output.ndim == 2 and output.shape[1] > 1:
        logits = output.float().log_softmax(1)
        drawn = torch.multinomial(logits.detach().exp().cpu(), 1, generator=generator)
        return logits.gather(1, drawn.to(logits.device)).sum()
    return (output * torch.randn(output.shape, generator=generator).to(output)).sum()


@torch.no_grad()
def trace_macs(model: nn.Module, layers: dict[str, nn.Module], call: Call) -> tuple[dict[str, float], int]:
    """Run a model once; return the output positions of layers, and the multiply-adds of the model, for one image."""
    from torch.utils.flop_counter import FlopCounterMode  # this import loads triton, which only counting needs

    positions: Counter[str] = Counter()

    def add_positions(name, layer, output):
        positions[name] += output.numel() // len(layer.weight)

    counter, is_fast = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # FlopCounterMode counts matrix products, but not fused attention
    try:
        with eval_with_hooks(model, layers, add_positions), sdpa_kernel(SDPBackend.MATH), counter:
            call.run(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
    per_image = {name: count / call.batch for name, count in positions.items()}
    return per_image, counter.get_total_flops() // 2 // call.batch
