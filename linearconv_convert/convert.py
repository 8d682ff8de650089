"""Conversion of nn.Conv2d to LinearConv of the same geometry, with weights fitted to the trained weights."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import surgery
from linearconv_convert.adapters import KINDS, split
from linearconv_convert.batch_norm import correct_batch_norm
from linearconv_convert.budget import CompressionTarget, allocate
from linearconv_convert.calibration import SENSITIVITY_IMAGES, Moments, add_sensitivities, output_moments, trace_macs
from linearconv_convert.inputs import Verification, calibration_calls, join_batches, known_call, with_batch
from linearconv_convert.report import LayerReport, Report, count_macs, count_parameters, other_layers, warn_of_savings
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
    evaluate: Callable[[nn.Module], float] | None = None,
    example_input: object = None,
    inplace: bool = False,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Replace the convolutions of a model by LinearConv layers fitted to their weights.

    Every nn.Conv2d is replaced, and every instance of a subclass that computes the same, unless the layer would not get
    smaller. A subclass that also pads, such as timm's Conv2dSame, becomes an nn.Sequential of a padding module and the
    LinearConv. The new layers keep geometry, device, dtype, mode, hooks, attributes and `requires_grad`.

    A copy of the model is run with LinearConv layers that have the weights of the model, on `calibration`,
    `example_input`, or random images. A layer that changes the output is not converted; the report gives the reason.

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
        error: instead of a budget, the target for each layer's relative error: of the outputs with `calibration`, else
            of the filters.
        skip: layers that are not converted: by name or glob pattern (`"features.0"`, `"layer1.*"`; the name or type of
            a module selects all layers in the module), by type, or by a predicate of name and layer; one, or a list.
        include: the only layers to convert, in the form of `skip`. Default: all layers
        kinds: kinds of layers to convert, from `"conv2d"`, `"conv1d"`, `"linear"`. Layers of the latter two kinds
            become adapters with a LinearConv as `conv`.
        grow: also convert layers that would not get smaller.
        init: `"fit"`, or `"scratch"` for weights from the initial distributions of the layers.
        calibration: a batch of the model's inputs (a tensor, tuple or dict), or several, with or without labels. With
            calibration, the outputs on these images are fitted (by their principal components) instead of the filters
            of layers with one group, the biases, if there are any, preserve the means of the outputs, and the
            statistics of BatchNorm change as much as the moments of its inputs (batch_norm.py). For full rank, the
            gradients of the network's output weight the outputs of the layers.
        evaluate: a metric of a model, higher is better. The loss of a layer for a `budget` is then the share of the
            metric that is lost when only this layer is reduced.
        example_input: the model's input, to verify and to count multiply-adds: a tensor, a tuple of all arguments, or a
            dict of them by name. Default: the first batch of `calibration`
        inplace: change the model in place.
        return_report: return a tuple of the converted model and its report.

    Raises:
        ConversionError: for a model that cannot be converted, for a budget that cannot be reached, or for inputs on
            which the model does not run. The model is unchanged.
        ValueError: for a setting that is out of range.
    """
    if type not in LINEARCONV_TYPES:
        raise ValueError(f"type must be one of {', '.join(LINEARCONV_TYPES)}, got {type!r}")
    if init not in ("fit", "scratch"):
        raise ValueError(f"init must be one of fit, scratch, got {init!r}")
    if isinstance(kinds, str) or not set(kinds) <= KINDS.keys():
        raise ConversionError(f"kinds must be several of {', '.join(KINDS)}, in a tuple, got {kinds!r}")
    target = CompressionTarget(budget, of, error, evaluate)
    target.check(type, rank, alpha)
    surgery.check_model(model)
    layers = layers_of(model, (nn.Conv2d, *(KINDS[kind] for kind in kinds)))
    if not layers:
        usable = tuple(kind for kind in KINDS if layers_of(model, KINDS[kind]))
        raise ConversionError("the model has no nn.Conv2d" + (f": pass kinds={usable}" if usable else ""))
    if inplace and "" in layers:
        raise ConversionError("the model is itself the layer and cannot be replaced in place: give inplace=False")
    reasons = _reasons_to_keep(model, layers, skip, include, kinds)
    chosen = [name for name in layers if not reasons[name]]
    ranks, alphas = values_by_name(model, chosen, rank, "rank"), values_by_name(model, chosen, alpha, "alpha")
    if isinstance(rank, dict) and type == "lowrank" and None in ranks.values():
        raise ConversionError(f"rank: no entry fits layer {next(name for name in ranks if ranks[name] is None)!r}")

    scratch = surgery.copy_of(model)  # runs of the model may change it
    layers = {name: scratch.get_submodule(name) for name in layers}
    if isinstance(calibration, Iterator):
        calibration = list(calibration)  # the batches are read twice
    first = measured_on = None
    if calibration is not None:
        calls = calibration_calls(scratch, calibration)
        first = with_batch(scratch, next(calls))
        measured_on = join_batches(first, calls, SENSITIVITY_IMAGES)
    counted = first if example_input is None else known_call(scratch, example_input)
    verification = Verification(model, first or counted)
    reasons |= _changes_of_the_output(model, chosen, verification)
    variants: dict[str, Any] = {}  # None for a layer that stays plain
    convs = {}  # nn.Conv2d that are equivalent to the layers
    for name in chosen:
        if not reasons[name]:
            given = alphas[name]
            variants[name] = Variant(type, ranks[name], sparsity, DEFAULT_ALPHA if given is None else given, compute)
            convs[name] = split(layers[name])[1]
    positions, macs = ({}, None) if counted is None else trace_macs(scratch, layers, counted)
    moments: dict[str, Moments] = {}  # of the outputs of layers with one group
    if measured_on is not None and (init == "fit" or target):
        of_one_group = {name: layers[name] for name, conv in convs.items() if conv.groups == 1}
        moments = output_moments(scratch, of_one_group, calibration)
        if type == "rank":  # the other fits have no metric
            add_sensitivities(scratch, of_one_group, moments, measured_on)
    allocation = allocate(scratch, convs, variants, moments, positions, macs, measured_on, target)
    variants |= allocation.variants
    for name, variant in variants.items():
        if variant is None:
            reasons[name] = "plain is best"
        elif not grow:
            old, new = convs[name], linearconv_like(convs[name], variant.conv, device="meta")
            if count_parameters(new) >= count_parameters(old):
                sizes = f"{count_parameters(old):,} -> {count_parameters(new):,}"
                reasons[name] = f"would not get smaller ({sizes})"

    converted: Any = model if inplace else surgery.copy_of(model)
    before, replacements, rows = count_parameters(converted), {}, []
    for name in layers:
        layer = converted.get_submodule(name)
        wrap, conv = split(layer) or (nn.Identity, layer)
        new, found = conv, {}
        if not reasons[name]:
            new = linearconv_like(conv, variants[name].conv)
            found = {"variant": variants[name], "expected": allocation.expected.get(name)}
            if init == "fit":
                found["filter_error"], found["output_error"] = fit(new, conv, moments.get(name))
                if not all(parameter.isfinite().all() for parameter in new.parameters()):
                    raise ConversionError(f"the weights fitted to layer {name!r} are not finite: skip it")
            replacements[layer] = wrap(new)
        if name in positions:
            found["macs_before"], found["macs_after"] = (count_macs(each, positions[name]) for each in (conv, new))
        rows.append(LayerReport(name, count_parameters(conv), count_parameters(new), reason=reasons[name], **found))
    converted = surgery.replace(converted, replacements)
    if replacements and init == "fit" and calibration is not None:
        correct_batch_norm(converted, scratch, calibration)
    after, others = count_parameters(converted), other_layers(converted, layers)
    report = Report(rows, before, after, macs, allocation.together, allocation.curve, others)
    if report.converted:
        verification.warn_if_unknown()
    warn_of_savings(report)
    return (converted, report) if return_report else converted


def _reasons_to_keep(model, layers, skip, include, kinds):
    """{name: the reason not to convert a layer, or "" for a layer that can be converted}."""
    skipped = select(model, layers, skip, "skip")
    included = select(model, layers, "*" if include is None else include, "include")
    uses = Counter(parameter for module in model.modules() for parameter in module._parameters.values())
    wanted = tuple(KINDS[kind] for kind in kinds)
    reasons = {}
    for name, layer in layers.items():
        if name in skipped:
            reasons[name] = "skipped"
        elif name not in included or not isinstance(layer, wanted):
            reasons[name] = "not included"
        else:
            reasons[name] = surgery.reason_to_keep(layer, uses)
            if not reasons[name] and not split(layer):
                kind = next(each for each in KINDS.values() if isinstance(layer, each))
                reasons[name] = f"{type(layer).__name__} adds to nn.{kind.__name__}"
    return reasons


def _changes_of_the_output(model, names, verification):
    """{name: reason} of the layers that cannot be replaced by a LinearConv with the same filters."""
    reasons = {}
    difference = verification.difference(_with_equal_filters(model, names))
    if difference:
        for name in names:
            if alone := verification.difference(_with_equal_filters(model, [name])):
                reasons[name] = f"is used in another way than by a call ({alone})"
        names = [name for name in names if name not in reasons]
        difference = verification.difference(_with_equal_filters(model, names))
    if difference:
        raise ConversionError(f"LinearConv layers with the weights of the model change its output: {difference}")
    return reasons


@torch.no_grad()
def _with_equal_filters(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of a model whose layers are LinearConv with the same filters; the old layers have NaNs as weights."""
    twin, replacements = surgery.copy_of(model), {}
    for name in names:
        layer = twin.get_submodule(name)
        wrap, conv = split(layer)
        new = linearconv_like(conv, partial(LinearConv, alpha=1.0))
        fit(new, conv)
        replacements[layer] = wrap(new)
    for layer in replacements:
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    return surgery.replace(twin, replacements)
