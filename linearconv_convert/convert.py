"""convert: nn.Conv2d to LinearConv of the same geometry, the trained weights carried over.

The fit itself is fitting.py, its weighing by data calibration.py.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import fitting
from linearconv_convert.calibration import output_moments
from linearconv_convert.surgery import (
    ConversionError,
    adds_nothing,
    check_layer,
    check_model,
    copy_of,
    layers_of,
    replace,
    watched,
)
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse
from linearconv_variants import LINEARCONV_TYPES, Variant

INITS = ("fit", "scratch")


@dataclass
class LayerReport:
    """What became of one convolution. Multiply-adds are those of one image at inference, None without example_input;
    errors are relative Frobenius norms, None where nothing was fitted; `reason` says why a layer was left alone."""

    name: str
    kind: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None
    macs_after: int | None = None
    filter_error: float | None = None
    output_error: float | None = None
    reason: str = ""


class Report(list):
    """A :class:`LayerReport` for each convolution of a model; str() is a table with totals."""

    def __init__(self, layers, parameters_before, parameters_after):
        super().__init__(layers)
        self.parameters_before = parameters_before  # of the whole model
        self.parameters_after = parameters_after

    @property
    def converted(self):
        return [layer for layer in self if not layer.reason]

    def __str__(self):
        width = max(len(layer.name) for layer in self)
        lines = [f"{'layer':{width}}  {'parameters':>23}  {'multiply-adds':>27}  filter error  output error"]
        for layer in self:
            macs = _change(layer.macs_before, layer.macs_after)
            sizes = _change(layer.parameters_before, layer.parameters_after)
            errors = f"{_percent(layer.filter_error):>12}  {_percent(layer.output_error):>12}"
            lines.append(f"{layer.name:{width}}  {sizes:>23}  {macs:>27}  {layer.reason or errors}")
        before, after = self.parameters_before, self.parameters_after
        lines.append(f"{len(self.converted)} of {len(self)} convolutions converted; "
                     f"parameters {before:,} -> {after:,} ({100 * after / before:.1f} %)")  # fmt: skip
        if all(layer.macs_before is not None for layer in self):
            before, after = (sum(getattr(layer, key) for layer in self) for key in ("macs_before", "macs_after"))
            lines[-1] += f"; multiply-adds of convolutions {before:,} -> {after:,} ({100 * after / before:.1f} %)"
        return "\n".join(lines)


def convert(
    model,
    type,
    *,
    rank=None,
    sparsity=None,
    alpha=0.5,
    compute="auto",
    skip=(),
    include=None,
    grow=False,
    init="fit",
    calibration=None,
    example_input=None,
    inplace=False,
    return_report=False,
):
    """Replace the convolutions of a model by LinearConv layers of the same geometry, device, dtype, mode, hooks and
    `requires_grad`, their weights fitted to the trained ones.

    Every nn.Conv2d, and subclass that adds nothing to it, is replaced, unless it would not get smaller (depthwise
    layers and thin 1x1 ones). Full rank is fitted by the truncated SVD of the filters, which is the best there is
    (Eckart-Young); the other variants by alternating regressions from there. `alpha=1` keeps the weights as they are.

    Args:
        model (nn.Module): any model.
        type (str): `"rank"`, `"lowrank"` or `"sparse"`, as :class:`linearconv_variants.Variant` has them.
        rank, sparsity, alpha, compute: the variant's setting.
        skip (str, type, callable, or several of them): layers to leave alone: by name or glob pattern
            (`"features.0"`, `"layer1.*"`; a module's name or type stands for all layers in it), by type, or by a
            predicate of name and layer.
        include (like skip): the only layers to convert; all where left out.
        grow (bool): convert layers that would not get smaller too. Default: False
        init (str): `"fit"`, or `"scratch"` for the initial distributions of the layers. Default: `"fit"`
        calibration (Tensor or iterable, optional): images (N, C, H, W), or batches of them, with or without labels.
            Then each layer's error is weighed by its input statistics, so that outputs are matched on these images
            (the principal components of the outputs instead of those of the filters), and the means of the outputs are
            kept through the biases, where there are any. Grouped layers are fitted to their filters all the same.
        example_input (Tensor or tuple, optional): arguments of the model, for multiply-adds in the report.
        inplace (bool): change the model itself. Default: False
        return_report (bool): return `(model, report)`. Default: False

    Returns:
        nn.Module, or (nn.Module, Report): the converted model.

    Raises:
        ConversionError: for a model, or a layer that is not skipped, that cannot be converted; the model is untouched.
        ValueError: for a setting that is out of range.
    """
    if type not in LINEARCONV_TYPES:
        raise ValueError(f"type must be one of {', '.join(LINEARCONV_TYPES)}, got {type!r}")
    conv = Variant(type, rank, sparsity, alpha, compute).conv
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    check_model(model)
    reasons = _plan(model, conv, skip, include, grow)
    if inplace and model in layers_of(model, nn.Conv2d).values():
        raise ConversionError("the model is itself a convolution and cannot be replaced in place: give inplace=False")
    target = model if inplace else copy_of(model)
    layers = layers_of(target, nn.Conv2d)
    chosen = {name: layer for name, layer in layers.items() if not reasons[name]}
    positions = _positions(target, layers, example_input)
    moments = output_moments(target, chosen, calibration) if calibration is not None and init == "fit" else {}

    replacements, reports = {}, []
    parameters_before = _count(target)
    for name, layer in layers.items():
        report = LayerReport(name, _kind(layer), _count(layer), _count(layer), reason=reasons[name])
        new = layer
        if name in chosen:
            new = replacements[layer] = _like(layer, conv)
            if init == "fit":
                _fit(layer, new, moments.get(name), report)
            report.parameters_after = _count(new)
        if name in positions:
            report.macs_before = positions[name] * layer.weight.numel()
            report.macs_after = _macs(new, positions[name])
        reports.append(report)
    converted = replace(target, replacements)
    report = Report(reports, parameters_before, _count(converted))
    return (converted, report) if return_report else converted


# ---- which layers -------------------------------------------------------------------------------------------------


def _plan(model, conv, skip, include, grow):
    """{name: why a convolution is left alone, or ""}."""
    layers = layers_of(model, nn.Conv2d)
    if not layers:
        others = len(layers_of(model, LinearConv))
        found = f": its {others} LinearConv layers are what it would become" if others else ""
        raise ConversionError(f"the model holds no nn.Conv2d{found}")
    is_skipped, is_included = _selector(model, skip, "skip"), _selector(model, include, "include")
    reasons = {}
    for name, layer in layers.items():
        if is_skipped(name, layer):
            reasons[name] = "skipped"
        elif include is not None and not is_included(name, layer):
            reasons[name] = "not included"
        else:
            check_layer(name, layer, model)
            reasons[name] = _why_not(layer, conv, grow)
    return reasons


def _why_not(layer, conv, grow):
    if not adds_nothing(layer):
        return f"{type(layer).__name__} adds to nn.Conv2d"
    before, after = _count(layer), _count(_like(layer, conv, device="meta"))
    return "" if grow or after < before else f"would not get smaller ({before:,} -> {after:,})"


def _selector(model, wanted, argument):
    """A predicate (name, layer) of what `skip` and `include` may hold."""
    if wanted is None:
        wanted = ()
    several = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
    modules = dict(model.named_modules())
    for one in several:
        if isinstance(one, str):
            if not any(fnmatch.fnmatchcase(name, one) for name in modules):
                raise ConversionError(f"{argument}: no module of the model is called {one!r}")
        elif not isinstance(one, Callable):
            raise ConversionError(f"{argument} takes names, patterns, types or functions (name, layer), got {one!r}")

    def matches(one, name, layer):
        places = [name] + [name[:end] for end, letter in enumerate(name) if letter == "."]  # itself, all around it
        if isinstance(one, str):
            return any(fnmatch.fnmatchcase(place, one) for place in places)
        if isinstance(one, type):
            return any(isinstance(modules[place], one) for place in places)
        return one(name, layer)

    return lambda name, layer: any(matches(one, name, layer) for one in several)


# ---- new layers ---------------------------------------------------------------------------------------------------


def _like(layer, conv, device=None):
    """A LinearConv of the geometry, device, dtype, memory format and `requires_grad` of an nn.Conv2d."""
    new = conv(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        device=device or layer.weight.device,
        dtype=layer.weight.dtype,
    )
    if not layer.weight.is_contiguous() and layer.weight.is_contiguous(memory_format=torch.channels_last):
        new.to(memory_format=torch.channels_last)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_((layer.bias if name == "bias" else layer.weight).requires_grad)
    return new


@torch.no_grad()
def _fit(layer, new, moments, report):
    """Fit the parameters of a LinearConv to a convolution's and note the errors."""
    weight = layer.weight.detach().double()
    if new.bias is not None:
        new.bias.copy_(layer.bias)
    if new.secondary_channels == 0:
        new.conv_weights.copy_(layer.weight)
    else:
        root = fitting.root_of(weight)
        if moments is not None and layer.groups == 1:
            weighed = moments.covariance if new.bias is not None else moments.second / moments.count
            if weighed.diagonal().sum() > 0:  # otherwise the layer's outputs were constant
                root = fitting.root_of_moments(weighed)
        coefficients = _fit_coefficients(new, root)
        new.conv_weights.copy_(fitting.primary_of(coefficients, weight))
        report.output_error = fitting.error(coefficients, root) / _norm(root) if moments is not None else None
        if moments is not None and new.bias is not None:
            mean = fitting.residual(coefficients, moments.mean[:, None])[:, 0]
            new.bias.add_(mean.to(new.bias.dtype))
    report.filter_error = torch.linalg.vector_norm(new.weight.double() - weight).item() / _norm(weight)


def _fit_coefficients(new, root):
    """Fill in the factors of a layer; returns their product, rounded as they are, (F - P, P) in float64."""
    primary = new.primary_channels
    coefficients = fitting.full_rank(root, primary, new.conv_weights.dtype)
    if isinstance(new, LinearConvLowRank):
        column, row = fitting.low_rank(root, primary, new.column_weights.shape[1], coefficients)
        new.column_weights.copy_(column)
        new.row_weights.copy_(row)
        return new.column_weights.double() @ new.row_weights.double()
    if isinstance(new, LinearConvSparse):
        pruned = round(new.sparsity * coefficients.numel())
        coefficients, mask = fitting.sparse(root, primary, pruned, coefficients)
        new.keep_mask(mask)
    new.linear_weights.copy_(coefficients)
    return new.linear_weights.double()


def _norm(tensor):
    return max(torch.linalg.vector_norm(tensor).item(), torch.finfo(tensor.dtype).tiny)


# ---- the report ---------------------------------------------------------------------------------------------------


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _kind(layer):
    kernel = "x".join(map(str, layer.kernel_size))
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    return f"{layer.in_channels} -> {layer.out_channels}, {kernel}{groups}"


def _macs(layer, positions):
    if isinstance(layer, LinearConv):
        return positions * layer.macs_per_position(layer.mode_at(positions, training=False))
    return positions * layer.weight.numel()


@torch.no_grad()
def _positions(model, layers, example_input):
    """{name: output positions of one image} of the layers that are reached."""
    found = {}

    def note(name, layer, output):
        found[name] = found.get(name, 0) + output.shape[-2] * output.shape[-1]

    if example_input is not None:
        with watched(model, layers, note):
            model(*(example_input if isinstance(example_input, tuple) else (example_input,)))
    return found


def _change(before, after):
    if before is None:
        return ""
    return f"{before:,} -> {after:,}" if before != after else f"{before:,}"


def _percent(error):
    return "" if error is None else f"{100 * error:.2f} %"
