"""Statistics of a model on calibration and example inputs: moments of outputs, output positions, multiply-adds."""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linearconv_convert.inputs import Call, calibration_calls, example_call
from linearconv_convert.surgery import ConversionError, ConversionWarning, eval_with_hooks

MIN_POSITIONS = 4  # least calibration positions for each output channel


@dataclass
class Moments:
    """Moments of a layer's outputs y without the bias, over all positions of all images, in float64."""

    second: torch.Tensor  # sum of y y^T, (F, F)
    first: torch.Tensor  # sum of y, (F,)
    count: int = 0  # number of positions

    @property
    def mean(self) -> torch.Tensor:
        """Mean of y, (F,)."""
        return self.first / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance of y, (F, F)."""
        return self.second / self.count - torch.outer(self.mean, self.mean)

    def add(self, output: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the positions of an output (N, F, H, W) or (F, H, W), after subtraction of the bias (F,)."""
        rows = output.detach().movedim(-3, -1).flatten(0, -2).double()  # (positions, F)
        if bias is not None:
            rows = rows - bias.detach().double()
        self.second += rows.T @ rows
        self.first += rows.sum(0)
        self.count += len(rows)


@dataclass(frozen=True)
class CalibrationStats:
    """Calibration statistics of a model; empty without inputs."""

    positions: dict[str, float] = field(default_factory=dict)  # {layer: output positions per image}
    macs: int | None = None  # multiply-adds of one image, in the whole model
    moments: dict[str, Moments] = field(default_factory=dict)  # of the outputs of layers with one group
    call: Call | None = None  # the first batch of calibration


def collect_stats(
    model: nn.Module, layers: dict[str, nn.Module], chosen: dict[str, nn.Module], calibration: object, example: object
) -> CalibrationStats:
    """Run a model on its calibration and example inputs.

    Args:
        model: the model; it is unchanged afterwards.
        layers: {name: layer} whose output positions are counted.
        chosen: {name: layer} whose output moments are collected.
        calibration: calibration batches, or None.
        example: an example input, or None for the first batch of calibration.

    Raises:
        ConversionError: if the model does not run on the inputs.
    """
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration  # the batches are read twice
    call = None if calibration is None else next(calibration_calls(model, calibration))
    counted = call if example is None else example_call(model, example)
    positions, macs = ({}, None) if counted is None else trace_macs(model, layers, counted)
    of_one_group = {name: layer for name, layer in chosen.items() if layer.groups == 1}
    moments = {} if calibration is None else output_moments(model, of_one_group, calibration)
    few = {name: each.count for name, each in moments.items() if each.count < MIN_POSITIONS * len(each.first)}
    if few:
        name = min(few, key=few.get)
        found = f"{few[name]} positions of {len(moments[name].first)} channels in layer {name!r}"
        text = f"calibration gives only {found}, too few for its statistics: give more images"
        warnings.warn(text, ConversionWarning, stacklevel=3)
    return CalibrationStats(positions, macs, moments, call)


@torch.no_grad()
def output_moments(model: nn.Module, layers: dict[str, nn.Module], batches: object) -> dict[str, Moments]:
    """Run batches through a model in eval mode and return the moments of its layers' outputs.

    Args:
        model: the model; it is unchanged afterwards and keeps its mode.
        layers: {name: layer} whose outputs are observed.
        batches: one batch or several, see :func:`linearconv_convert.inputs.calibration_calls`.

    Returns:
        {name: moments} of the layers that were called.

    Raises:
        ConversionError: if there is no batch, if the model does not run on a batch, or if an output is not finite.
    """
    moments = {}

    def add_output(name, layer, output):
        if name not in moments:
            zeros = output.new_zeros(layer.out_channels, layer.out_channels, dtype=torch.float64)
            moments[name] = Moments(zeros, zeros[0].clone())
        moments[name].add(output, layer.bias)

    with eval_with_hooks(model, layers, add_output):
        for call in calibration_calls(model, batches):
            call.run(model)
    for name, each in moments.items():
        if not each.second.isfinite().all():
            raise ConversionError(f"calibration: the outputs of layer {name!r} on these images are not finite")
    return moments


@torch.no_grad()
def trace_macs(model: nn.Module, layers: dict[str, nn.Module], call: Call) -> tuple[dict[str, float], int]:
    """Run a model once and count the multiply-adds of one image.

    Returns:
        {name: output positions} of the layers that were called, summed over the calls, and the multiply-adds of the
        whole model. Both are divided by the batch size.
    """
    from torch.utils.flop_counter import FlopCounterMode  # this import loads triton, which only counting needs

    positions, ranks = Counter(), {4}

    def add_positions(name, layer, output):
        positions[name] += output.numel() // layer.out_channels
        ranks.add(output.ndim)

    counter, is_fast = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # FlopCounterMode counts matrix products, but not fused attention
    try:
        with eval_with_hooks(model, layers, add_positions), sdpa_kernel(SDPBackend.MATH), counter:
            call.run(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
    batch = call.batch if min(ranks) == 4 else 1  # otherwise the input is one image without a batch dimension
    return {name: count / batch for name, count in positions.items()}, counter.get_total_flops() // 2 // batch
