"""convert: nn.Conv2d to LinearConv of the same geometry, the trained weights carried over.

Which layers are meant is selection.py, how many primary filters each gets choosing.py, what becomes of its weights
carrying.py, the arithmetic of that fitting.py, its weighing by data calibration.py, the report report.py.
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
from linearconv_convert.surgery import ConversionError, Selection, layers_of, names_of, values_by_name
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

    Every nn.Conv2d, and subclass that adds nothing to it, is replaced, unless it would not get smaller (depthwise
    layers and thin 1x1 ones). One that only pads besides, as timm's Conv2dSame, becomes an nn.Sequential of a padding
    module and the LinearConv. Geometry, device, dtype, mode, hooks and `requires_grad` stay. Full rank is fitted by the
    truncated SVD of the filters, the best there is (Eckart-Young); the other variants by alternating regressions.

    Args:
        model: any model.
        type: `"rank"`, `"lowrank"` or `"sparse"`, as :class:`linearconv_variants.Variant` has them.
        rank, sparsity, compute: the variant's setting; `lowrank` has no default rank here.
        alpha: share of primary filters (default: 0.5); `alpha=1` keeps the weights as they are. `alpha` and `rank` may
            be dicts {name: value} with names as `skip` has them; the first that fits a layer counts.
        budget: share of the whole model's size that the result may have. Then alpha (of `rank`), or the rank (of
            `lowrank`), is chosen for each layer so that the least is lost: of the network's output with `calibration`,
            measured one layer at a time, else of the filters.
        of: the size that `budget` means: `"parameters"`, or `"macs"`, multiply-adds of an image of a large batch.
        error: relative error that each layer may have, given instead of a budget: of its outputs with `calibration`,
            else of its filters. Each layer gets the fewest primary filters, or the least rank, within it.
        skip: layers to leave alone: by name or glob pattern (`"features.0"`, `"layer1.*"`; a module's name or type
            stands for all layers in it), by type, or by a predicate of name and layer; one, or a list of them.
        include: the only layers to convert, given like `skip`; all where left out.
        kinds: of the layers to convert, of `"conv2d"`, `"conv1d"`, `"linear"`. The latter become shells that hold a
            LinearConv as `conv`; those that share a weight with another layer are left alone.
        grow: convert layers that would not get smaller too.
        init: `"fit"`, or `"scratch"` for the initial distributions of the layers.
        calibration: a batch of what the model takes (a tensor, tuple or dict), or several, with or without labels. Then
            outputs on these images are matched instead of filters (by the principal components of the outputs), and the
            means of the outputs are kept through the biases, where there are any. Grouped layers are fitted to their
            filters all the same.
        example_input: what the model takes, for multiply-adds: a tensor, a tuple of all arguments, or a dict of them
            by name. Left out, the first batch of `calibration` serves.
        inplace: change the model itself.
        return_report: return `(model, report)`.

    Returns:
        The converted model, with `return_report` and its report.

    Raises:
        ConversionError: for a model, or a layer that is not skipped, that cannot be converted, a budget that cannot be
            reached, or inputs that the model does not take; the model is untouched.
        ValueError: for a setting that is out of range.
    """
    if type not in LINEARCONV_TYPES:
        raise ValueError(f"type must be one of {', '.join(LINEARCONV_TYPES)}, got {type!r}")
    if init not in ("fit", "scratch"):
        raise ValueError(f"init must be one of fit, scratch, got {init!r}")
    aim = CompressionTarget(budget, of, error)
    aim.check(type, rank, alpha, grow)
    _variant(type, sparsity, compute, *(None if isinstance(given, dict) else given for given in (rank, alpha)))
    surgery.check_model(model)
    with adapters_in_place(model, kinds):
        reasons = _reasons_to_keep(model, skip, include, kinds)
        if inplace and isinstance(model, nn.Conv2d):
            raise ConversionError("the model is itself a convolution, not to be replaced in place: give inplace=False")
        target = model if inplace else surgery.copy_of(model)
        layers = layers_of(target, nn.Conv2d)
        chosen = {name: layer for name, layer in layers.items() if not reasons[name]}
        ranks, alphas = (values_by_name(target, chosen, *given) for given in ((rank, "rank"), (alpha, "alpha")))
        if isinstance(rank, dict) and type == "lowrank" and None in ranks.values():
            raise ConversionError(f"rank: no entry fits layer {next(name for name in ranks if ranks[name] is None)!r}")
        variants = {name: _variant(type, sparsity, compute, ranks[name], alphas[name]) for name in chosen}
        stats = collect_stats(target, layers, chosen, calibration if init == "fit" or aim else None, example_input)
        plan = allocate(target, chosen, variants, stats, aim) if aim else Allocation()
        variants |= plan.variants
        reasons |= {name: _reason_of_size(layer, variants[name], grow) for name, layer in chosen.items()}

        before = count_parameters(target)
        replacements, reports = _replacements(layers, variants, reasons, stats, plan, init)
        converted = surgery.replace(target, replacements)
    remove_unused_adapters(converted)
    after, others = count_parameters(converted), other_layers(converted)
    report = Report(reports, before, after, stats.macs, plan.together, plan.curve, others)
    warn_of_small_savings(report)
    return (converted, report) if return_report else converted


def _variant(type, sparsity, compute, rank, alpha):
    return Variant(type, rank, sparsity, DEFAULT_ALPHA if alpha is None else alpha, compute)


def _reasons_to_keep(model, skip, include, kinds):
    """{name: why a convolution is left alone, or "" for one that can be converted}."""
    layers = layers_of(model, nn.Conv2d)
    if not layers:
        done, others = len(layers_of(model, LinearConv)), ", ".join(other_layers(model))
        found = f": its {done} LinearConv layers are what it would become" if done else ""
        found = found or (others and f": of its {others}, kinds= converts some")
        raise ConversionError(f"the model holds no nn.Conv2d{found}")
    skipped = names_of(model, layers, skip, "skip")
    included = names_of(model, layers, "*" if include is None else include, "include")
    reasons = {}
    for name, layer in layers.items():
        is_shell = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv2dAdapter)
        if name in skipped or name not in included or not (is_shell or "conv2d" in kinds):
            reasons[name] = "skipped" if name in skipped else "not included"
            continue
        surgery.check_layer(name, layer, model)
        reasons[name] = "" if split_padding(layer) else f"{type(layer).__name__} adds to nn.Conv2d"
    return reasons


def _replacements(layers, variants, reasons, stats, plan, init):
    """{convolution: what stands for it}, and the reports of all convolutions."""
    replacements, reports = {}, []
    for name, layer in layers.items():
        new, positions = layer, stats.positions.get(name)
        row = {"name": name, "reason": reasons[name], "parameters_before": count_parameters(layer)}
        if not reasons[name]:
            pad, conv = split_padding(layer)
            new = linearconv_like(conv, variants[name].conv)
            replacements[layer] = new if pad is None else nn.Sequential(pad, new)
            row |= {"variant": variants[name], "expected": plan.expected.get(name)}
            if init == "fit":
                row["filter_error"], row["output_error"] = fit(new, layer, stats.moments.get(name))
        row["parameters_after"] = count_parameters(new)
        if positions is not None:
            row |= {"macs_before": count_macs(layer, positions), "macs_after": count_macs(new, positions)}
        reports.append(LayerReport(**row))
    return replacements, reports


def _reason_of_size(layer, variant, grow):
    if variant is None:
        return "plain is best"
    before, after = count_parameters(layer), count_parameters(linearconv_like(layer, variant.conv, device="meta"))
    return "" if grow or after < before else f"would not get smaller ({before:,} -> {after:,})"
