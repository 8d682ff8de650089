"""convert: nn.Conv2d to LinearConv of the same geometry, the trained weights carried over.

What a layer gets of its weights is carrying.py, the arithmetic of that fitting.py, its weighing by data calibration.py,
the table of what was done report.py.
"""

import fnmatch
from collections.abc import Callable, Iterable

import torch
import torch.nn as nn

from linearconv import GEOMETRY, LinearConv
from linearconv_convert import surgery
from linearconv_convert.calibration import output_moments
from linearconv_convert.carrying import fit
from linearconv_convert.report import LayerReport, Report, count_macs, count_parameters, output_positions
from linearconv_convert.surgery import ConversionError, layers_of
from linearconv_variants import LINEARCONV_TYPES, Variant

Choice = str | type | Callable[[str, nn.Module], bool]
Selection = Choice | list[Choice] | tuple[Choice, ...] | set[Choice] | frozenset[Choice]


def convert(
    model: nn.Module,
    type: str,
    *,
    rank: float | None = None,
    sparsity: float | None = None,
    alpha: float = 0.5,
    compute: str = "auto",
    skip: Selection = (),
    include: Selection | None = None,
    grow: bool = False,
    init: str = "fit",
    calibration: torch.Tensor | Iterable | None = None,
    example_input: torch.Tensor | tuple | None = None,
    inplace: bool = False,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Replace the convolutions of a model by LinearConv layers fitted to their weights.

    Every nn.Conv2d, and subclass that adds nothing to it, is replaced, unless it would not get smaller (depthwise
    layers and thin 1x1 ones). Geometry, device, dtype, mode, hooks and `requires_grad` stay. Full rank is fitted by the
    truncated SVD of the filters, the best there is (Eckart-Young); the other variants by alternating regressions.

    Args:
        model: any model.
        type: `"rank"`, `"lowrank"` or `"sparse"`, as :class:`linearconv_variants.Variant` has them.
        rank, sparsity, alpha, compute: the variant's setting; `alpha=1` keeps the weights as they are.
        skip: layers to leave alone: by name or glob pattern (`"features.0"`, `"layer1.*"`; a module's name or type
            stands for all layers in it), by type, or by a predicate of name and layer; one, or a list of them.
        include: the only layers to convert, given like `skip`; all where left out.
        grow: convert layers that would not get smaller too.
        init: `"fit"`, or `"scratch"` for the initial distributions of the layers.
        calibration: images (N, C, H, W), or batches of them, with or without labels. Then outputs on these images are
            matched instead of filters (by the principal components of the outputs), and the means of the outputs are
            kept through the biases, where there are any. Grouped layers are fitted to their filters all the same.
        example_input: arguments of the model, for multiply-adds in the report.
        inplace: change the model itself.
        return_report: return `(model, report)`.

    Returns:
        The converted model, with `return_report` and its report.

    Raises:
        ConversionError: for a model, or a layer that is not skipped, that cannot be converted; the model is untouched.
        ValueError: for a setting that is out of range.
    """
    if type not in LINEARCONV_TYPES:
        raise ValueError(f"type must be one of {', '.join(LINEARCONV_TYPES)}, got {type!r}")
    conv = Variant(type, rank, sparsity, alpha, compute).conv
    if init not in ("fit", "scratch"):
        raise ValueError(f"init must be one of fit, scratch, got {init!r}")
    surgery.check_model(model)
    reasons = _reasons_to_keep(model, conv, skip, include, grow)
    if inplace and isinstance(model, nn.Conv2d):
        raise ConversionError("the model is itself a convolution and cannot be replaced in place: give inplace=False")
    target = model if inplace else surgery.copy_of(model)
    layers = layers_of(target, nn.Conv2d)
    chosen = {name: layer for name, layer in layers.items() if not reasons[name]}
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    positions = {} if example_input is None else output_positions(target, layers, arguments)
    moments = output_moments(target, chosen, calibration) if calibration is not None and init == "fit" else {}

    replacements, reports = {}, []
    for name, layer in layers.items():
        new, filter_error, output_error = layer, None, None
        if name in chosen:
            new = replacements[layer] = _like(layer, conv)
            if init == "fit":
                filter_error, output_error = fit(new, layer, moments.get(name))
        parameters = [count_parameters(each) for each in (layer, new)]
        macs = [count_macs(each, positions[name]) if name in positions else None for each in (layer, new)]
        reports.append(LayerReport(name, *parameters, *macs, filter_error, output_error, reasons[name]))
    before = count_parameters(target)
    converted = surgery.replace(target, replacements)
    return (converted, Report(reports, before, count_parameters(converted))) if return_report else converted


def _reasons_to_keep(model, conv, skip, include, grow):
    """{name: why a convolution is left alone, or "" for one to convert}."""
    layers = layers_of(model, nn.Conv2d)
    if not layers:
        others = len(layers_of(model, LinearConv))
        found = f": its {others} LinearConv layers are what it would become" if others else ""
        raise ConversionError(f"the model holds no nn.Conv2d{found}")
    skipped = _names_of(model, layers, skip, "skip")
    included = _names_of(model, layers, "*" if include is None else include, "include")
    reasons = {}
    for name, layer in layers.items():
        if name in skipped or name not in included:
            reasons[name] = "skipped" if name in skipped else "not included"
            continue
        surgery.check_layer(name, layer, model)
        if not surgery.is_plain_conv2d(layer):
            reasons[name] = f"{type(layer).__name__} adds to nn.Conv2d"
            continue
        before, after = count_parameters(layer), count_parameters(_like(layer, conv, device="meta"))
        reasons[name] = "" if grow or after < before else f"would not get smaller ({before:,} -> {after:,})"
    return reasons


def _names_of(model, layers, selection, argument):
    """The names of the layers that `skip` or `include` stands for."""
    modules, found = dict(model.named_modules()), set()
    for item in selection if isinstance(selection, (list, tuple, set, frozenset)) else [selection]:
        if isinstance(item, str):
            parents = [name for name in modules if fnmatch.fnmatchcase(name, item)]
            if not parents:
                raise ConversionError(f"{argument}: no module of the model is called {item!r}")
        elif isinstance(item, type):
            parents = [name for name, module in modules.items() if isinstance(module, item)]
        elif callable(item):
            parents = [name for name, layer in layers.items() if item(name, layer)]
        else:
            raise ConversionError(f"{argument} takes names, patterns, types or functions (name, layer), got {item!r}")
        found |= {name for name in layers if any(f"{name}.".startswith(f"{parent}.") for parent in parents)}
    return found


def _like(layer, conv, device=None):
    """A LinearConv of the geometry, device, dtype, memory format and `requires_grad` of an nn.Conv2d."""
    factory = {"device": device or layer.weight.device, "dtype": layer.weight.dtype}
    new = conv(**{name: getattr(layer, name) for name in GEOMETRY}, bias=layer.bias is not None, **factory)
    if not layer.weight.is_contiguous() and layer.weight.is_contiguous(memory_format=torch.channels_last):
        new.to(memory_format=torch.channels_last)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_((layer.bias if name == "bias" else layer.weight).requires_grad)
    return new
