"""Moments of what layers put out on given images, which weigh the errors of a conversion."""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from linearconv_convert.inputs import Call, calibration_calls, example_call
from linearconv_convert.surgery import ConversionWarning, eval_with_hooks


@dataclass
class Moments:
    """Moments of a layer's outputs y, its bias left out, over all positions of all images, in float64."""

    second: torch.Tensor  # sum of y y^T, (F, F)
    first: torch.Tensor  # sum of y, (F,)
    count: int = 0  # of positions

    @property
    def mean(self) -> torch.Tensor:
        """Mean of y, (F,)."""
        return self.first / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance of y, (F, F)."""
        return self.second / self.count - torch.outer(self.mean, self.mean)

    def add(self, output: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the positions of an output (N, F, H, W) or (F, H, W), from which the bias (F,) is taken off."""
        rows = output.detach().movedim(-3, -1).flatten(0, -2).double()  # (positions, F)
        if bias is not None:
            rows = rows - bias.detach().double()
        self.second += rows.T @ rows
        self.first += rows.sum(0)
        self.count += len(rows)


@torch.no_grad()
def output_moments(model: nn.Module, layers: dict[str, nn.Module], batches: object) -> dict[str, Moments]:
    """Run batches through a model in eval mode and return the moments of its layers' outputs.

    Args:
        model: left as it was, in its mode too.
        layers: {name: layer} of those to look at.
        batches: a batch, or several, as :func:`linearconv_convert.inputs.calibration_calls` takes them.

    Returns:
        {name: moments} of the layers that were reached.

    Raises:
        ConversionError: where `batches` holds none, or the model does not run on them.
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
    return moments


MIN_POSITIONS = 4  # of calibration for each output channel


@dataclass(frozen=True)
class CalibrationStats:
    """What is known of a model; empty without inputs."""

    positions: dict[str, int] = field(default_factory=dict)  # output positions of one image, by layer
    macs: int | None = None  # multiply-adds of one image, in the whole model
    moments: dict[str, Moments] = field(default_factory=dict)  # of the outputs of layers of one group
    call: Call | None = None  # the first batch of calibration


def collect_stats(
    model: nn.Module, layers: dict[str, nn.Module], chosen: dict[str, nn.Module], calibration: object, example: object
) -> CalibrationStats:
    """Run a model on what there is of inputs.

    Args:
        model: left as it was.
        layers: {name: layer} whose positions count.
        chosen: {name: layer} of those to calibrate.
        calibration: batches, or None.
        example: an example input, or None, for which the first batch stands in.

    Raises:
        ConversionError: where the model does not take them.
    """
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration  # it is read twice
    call = None if calibration is None else next(calibration_calls(model, calibration))
    counted = call if example is None else example_call(model, example)
    positions, macs = ({}, None) if counted is None else trace_macs(model, layers, counted)
    of_one_group = {name: layer for name, layer in chosen.items() if layer.groups == 1}
    moments = {} if calibration is None else output_moments(model, of_one_group, calibration)
    few = {name: each.count for name, each in moments.items() if each.count < MIN_POSITIONS * len(each.first)}
    if few:
        name = min(few, key=few.get)
        found = f"{few[name]} positions of {len(moments[name].first)} channels in layer {name!r}"
        text = f"calibration gives only {found}, too few to tell what its outputs are like: give more images"
        warnings.warn(text, ConversionWarning, stacklevel=3)
    return CalibrationStats(positions, macs, moments, call)


@torch.no_grad()
def trace_macs(model: nn.Module, layers: dict[str, nn.Module], call: Call) -> tuple[dict[str, int], int]:
    """Run a model once and return what one image takes of it.

    Returns:
        {name: output positions, summed over its calls} of the layers reached, and the multiply-adds of the whole model.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, and only counting needs it

    positions, batches = Counter(), {1}

    def add_positions(name, layer, output):
        positions[name] += output.shape[-2] * output.shape[-1]
        batches.add(len(output) if output.ndim == 4 else 1)

    with eval_with_hooks(model, layers, add_positions), FlopCounterMode(display=False) as counter:
        call.run(model)
    return dict(positions), counter.get_total_flops() // 2 // max(batches)
