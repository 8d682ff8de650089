"""Conversion of nn.Conv2d to LinearConv of the same geometry, with weights fitted to the trained weights.

surgery.py selects and replaces layers, budget.py chooses the primary filters of each layer, weights.py sets the weights
with the solvers of fitting.py, calibration.py collects the calibration statistics, and report.py reports.
"""

import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import surgery
from linearconv_convert.adapters import Conv2dAdapter, adapters_in_place, remove_unused_adapters, split_padding
from linearconv_convert.budget import Allocation, CompressionTarget, allocate
from linearconv_convert.calibration import collect_stats
from linearconv_convert.report import (
    LayerReport,
    Report,
    count_macs,
    count_parameters,
    other_layers,
    warn_of_small_savings,
)
from linearconv_convert.surgery import ConversionError, Selection, layers_of, select, values_by_name
from linearconv_convert.weights import fit, linearconv_like
from linearconv_variants import LINEARCONV_TYPES, Variant

DEFAULT_ALPHA = 0.5


def convert(
    model: nn.Module,
    type: str,
    *,
    rank: float | dict[str, float] | None = None,
    sparsity: float | None = None,
    alpha: float | dict[str, float] | None = None,
    compute: str = "auto",
    budget: float | None = None,
    of: str = "parameters",
    error: float | None = None,
    skip: Selection = (),
    include: Selection | None = None,
    kinds: tuple[str, ...] = ("conv2d",),
    grow: bool = False,
    init: str = "fit",
    calibration: object = None,
    example_input: object = None,
    inplace: bool = False,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Replace the convolutions of a model by LinearConv layers fitted to their weights.

    Every nn.Conv2d is replaced, and every instance of a subclass that computes the same, unless the layer would not get
    smaller (depthwise layers and thin 1x1 layers). A subclass that also pads, such as timm's Conv2dSame, becomes an
    nn.Sequential of a padding module and the LinearConv. The new layers keep geometry, device, dtype, mode, hooks and
    `requires_grad`. The truncated SVD of the filters fits full rank, which is optimal (Eckart-Young). Alternating
    regressions fit the other variants. :mod:`linearconv_convert.weights` describes the fit of custom variants.

    Args:
        model: any model.
        type: `"rank"`, `"lowrank"`, `"sparse"`, or another LinearConv type of :class:`linearconv_variants.Variant`.
        rank, sparsity, compute: the settings of the variant; here `lowrank` has no default rank.
        alpha: share of primary filters (default: 0.5); `alpha=1` leaves the weights unchanged. `alpha` and `rank` may
            be dicts {name: value} with names as in `skip`; the first entry that matches a layer applies.
        budget: target size as a share of the size of the whole model. The budget chooses alpha (for `rank`) or the rank
            (for `lowrank`) of each layer with the least loss. With `calibration` the loss is the error of the network's
            output, measured for one layer at a time; without it, the error of the filters.
        of: unit of the `budget`: `"parameters"`, or `"macs"`, the multiply-adds of one image in a large batch.
        error: target for the relative error of each layer, instead of a budget: the error of the outputs with
            `calibration`, else of the filters. Each layer gets the fewest primary filters, or the lowest rank, within
            this error.
        skip: layers that are not converted: by name or glob pattern (`"features.0"`, `"layer1.*"`; the name or type of
            a module selects all layers in the module), by type, or by a predicate of name and layer; one, or a list.
        include: the only layers to convert, in the form of `skip`. Default: all layers
        kinds: kinds of layers to convert, from `"conv2d"`, `"conv1d"`, `"linear"`. Layers of the latter two kinds
            become adapters with a LinearConv as `conv`. Layers that share a weight with other layers are not converted.
        grow: also convert layers that would not get smaller.
        init: `"fit"`, or `"scratch"` for weights from the initial distributions of the layers.
        calibration: a batch of the model's inputs (a tensor, tuple or dict), or several, with or without labels. With
            calibration, the outputs on these images are fitted (by their principal components) instead of the filters,
            and the biases, if there are any, preserve the means of the outputs. For grouped layers the filters are
            always fitted.
        example_input: the model's input, to count multiply-adds: a tensor, a tuple of all arguments, or a dict of them
            by name. Default: the first batch of `calibration`
        inplace: change the model in place.
        return_report: return `(model, report)`.

    Returns:
        The converted model; with `return_report`, a tuple of the model and its report.

    Raises:
        ConversionError: for a model, or a layer that is not skipped, that cannot be converted, for a budget that cannot
            be reached, or for inputs on which the model does not run. The model is unchanged.
        ValueError: for a setting that is out of range.
    """
    if type not in LINEARCONV_TYPES:
        raise ValueError(f"type must be one of {', '.join(LINEARCONV_TYPES)}, got {type!r}")
    if init not in ("fit", "scratch"):
        raise ValueError(f"init must be one of fit, scratch, got {init!r}")
    size = CompressionTarget(budget, of, error)
    size.check(type, rank, alpha, grow)
    _variant(type, sparsity, compute, *(None if isinstance(given, dict) else given for given in (rank, alpha)))
    surgery.check_model(model)
    with adapters_in_place(model, kinds):
        reasons = _reasons_to_keep(model, skip, include, kinds)
        if inplace and isinstance(model, nn.Conv2d):
            raise ConversionError("the model is itself a convolution, not to be replaced in place: give inplace=False")
        target = model if inplace else surgery.copy_of(model)
        layers = layers_of(target, nn.Conv2d)
        chosen = {name: layer for name, layer in layers.items() if not reasons[name]}
        ranks, alphas = values_by_name(target, chosen, rank, "rank"), values_by_name(target, chosen, alpha, "alpha")
        if isinstance(rank, dict) and type == "lowrank" and None in ranks.values():
            raise ConversionError(f"rank: no entry fits layer {next(name for name in ranks if ranks[name] is None)!r}")
        variants = {name: _variant(type, sparsity, compute, ranks[name], alphas[name]) for name in chosen}
        stats = collect_stats(target, layers, chosen, calibration if init == "fit" or size else None, example_input)
        allocation = allocate(target, chosen, variants, stats, size) if size else Allocation()
        variants |= allocation.variants

        before, replacements, rows = count_parameters(target), {}, []
        for name, layer in layers.items():
            reason = reasons[name] or _reason_of_size(layer, variants[name], grow)
            new, errors = layer, {}
            if not reason:
                new, errors = _converted(name, layer, variants[name], stats.moments.get(name), init)
                replacements[layer] = new
                errors |= {"variant": variants[name], "expected": allocation.expected.get(name)}
            rows.append(_row(name, layer, new, stats.positions.get(name), reason, errors))
        converted = surgery.replace(target, replacements)
    remove_unused_adapters(converted)
    after, others = count_parameters(converted), other_layers(converted)
    report = Report(rows, before, after, stats.macs, allocation.together, allocation.curve, others)
    warn_of_small_savings(report)
    return (converted, report) if return_report else converted


def _variant(type, sparsity, compute, rank, alpha):
    return Variant(type, rank, sparsity, DEFAULT_ALPHA if alpha is None else alpha, compute)


def _reasons_to_keep(model, skip, include, kinds):
    """{name: the reason not to convert a convolution, or "" for a convolution that can be converted}."""
    layers = layers_of(model, nn.Conv2d)
    if not layers:
        done, others = len(layers_of(model, LinearConv)), ", ".join(other_layers(model))
        found = f": its {done} LinearConv layers need no conversion" if done else ""
        found = found or (others and f": of its {others}, kinds= converts some")
        raise ConversionError(f"the model has no nn.Conv2d{found}")
    skipped = select(model, layers, skip, "skip")
    included = select(model, layers, "*" if include is None else include, "include")
    reasons = {}
    for name, layer in layers.items():
        in_adapter = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv2dAdapter)
        if name in skipped:
            reasons[name] = "skipped"
        elif name not in included or not (in_adapter or "conv2d" in kinds):
            reasons[name] = "not included"
        elif surgery.is_patched(layer):
            reasons[name] = "has a method of its own, set on the instance"
        else:
            surgery.check_layer(name, layer, model)
            reasons[name] = "" if split_padding(layer) else f"{type(layer).__name__} adds to nn.Conv2d"
    return reasons


def _reason_of_size(layer, variant, grow):
    if variant is None:
        return "plain is best"
    before, after = count_parameters(layer), count_parameters(linearconv_like(layer, variant.conv, device="meta"))
    return "" if grow or after < before else f"would not get smaller ({before:,} -> {after:,})"


def _converted(name, layer, variant, moments, init):
    """The replacement of a convolution, and the errors of its fit."""
    pad, conv = split_padding(layer)
    new, errors = linearconv_like(conv, variant.conv), {}
    if init == "fit":
        errors["filter_error"], errors["output_error"] = fit(new, conv, moments)
        if not all(parameter.isfinite().all() for parameter in new.parameters()):
            raise ConversionError(f"the weights fitted to layer {name!r} are not finite: skip it")
    return (new if pad is None else nn.Sequential(pad, new)), errors


def _row(name, layer, new, positions, reason, errors):
    sizes = {"parameters_before": count_parameters(layer), "parameters_after": count_parameters(new)}
    if positions is not None:
        inner = new[1] if isinstance(new, nn.Sequential) else new  # without the padding module
        sizes |= {"macs_before": count_macs(layer, positions), "macs_after": count_macs(inner, positions)}
    return LayerReport(name, **sizes, reason=reason, **errors)
