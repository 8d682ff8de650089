"""The report of a conversion: what became of each convolution, in parameters, multiply-adds and errors."""

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert.surgery import eval_with_hooks


@dataclass(frozen=True)
class LayerReport:
    """What became of one convolution."""

    name: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None  # multiply-adds of one image at inference; None without `example_input`
    macs_after: int | None = None
    filter_error: float | None = None  # relative Frobenius norm of what filters differ by; None where nothing is fitted
    output_error: float | None = None  # the same of the outputs on calibration images; None without these
    reason: str = ""  # why the layer was left alone; empty for a converted one


@dataclass(frozen=True)
class Report:
    """What became of a model; str() is a table of its convolutions with totals."""

    layers: list[LayerReport]  # of each convolution
    parameters_before: int  # of the whole model
    parameters_after: int

    @property
    def converted(self) -> list[LayerReport]:
        """The layers that were converted."""
        return [layer for layer in self.layers if not layer.reason]

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer':{width}}  {'parameters':>23}  {'multiply-adds':>27}  filter error  output error"]
        for layer in self.layers:
            parameters = _change(layer.parameters_before, layer.parameters_after)
            macs = _change(layer.macs_before, layer.macs_after)
            errors = f"{_percent(layer.filter_error):>12}  {_percent(layer.output_error):>12}"
            lines.append(f"{layer.name:{width}}  {parameters:>23}  {macs:>27}  {layer.reason or errors}")
        totals = f"{len(self.converted)} of {len(self.layers)} convolutions converted; parameters "
        totals += _total(self.parameters_before, self.parameters_after)
        if all(layer.macs_before is not None for layer in self.layers):
            before, after = (sum(getattr(layer, key) for layer in self.layers) for key in ("macs_before", "macs_after"))
            totals += f"; multiply-adds of convolutions {_total(before, after)}"
        return "\n".join([*lines, totals])


def count_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(layer: nn.Conv2d | LinearConv, positions: int) -> int:
    """Return the multiply-adds of a layer at inference for one image, of H' W' positions summed over its calls."""
    if isinstance(layer, LinearConv):
        return positions * layer.macs_per_position(layer.mode_at(positions, training=False))
    return positions * layer.weight.numel()


@torch.no_grad()
def output_positions(model: nn.Module, layers: dict[str, nn.Module], arguments: tuple) -> dict[str, int]:
    """Run a model once on its arguments, and return {name: output positions of one image} of the layers reached."""
    positions = Counter()

    def add_positions(name, layer, output):
        positions[name] += output.shape[-2] * output.shape[-1]

    with eval_with_hooks(model, layers, add_positions):
        model(*arguments)
    return positions


def _change(before, after):
    if before is None:
        return ""
    return f"{before:,} -> {after:,}" if before != after else f"{before:,}"


def _total(before, after):
    return f"{before:,} -> {after:,} ({100 * after / before:.1f} %)"


def _percent(error):
    return "" if error is None else f"{100 * error:.2f} %"
