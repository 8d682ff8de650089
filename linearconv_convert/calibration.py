"""Moments of what layers put out on given images, which weigh the errors of a conversion."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from linearconv_convert.inputs import calibration_calls
from linearconv_convert.surgery import eval_with_hooks


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
