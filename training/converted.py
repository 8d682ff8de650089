"""Networks of torchvision and timm, converted to LinearConv, for a script to train.

    --network torchvision:resnet18 --weights resnet18.pth -t rank --budget 0.5

The first process converts, on training images; what it has chosen for each layer is kept in checkpoints. A run that
goes on, and every other process, makes the same layers from that.
"""

import argparse
import hashlib
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch

from linearconv_convert.budget import UNITS, CompressionTarget
from linearconv_convert.convert import convert
from linearconv_convert.networks import convert_again, load_network, load_weights, setting_of
from linearconv_convert.report import warnings_as_lines
from linearconv_convert.surgery import ConversionError
from linearconv_variants import add_options
from training.errors import UsageError
from training.networks import Built, Request
from training.numbers import non_negative_int, positive_float, positive_share

CALIBRATE = 512  # images


class Library:
    """The networks of torchvision and timm; a source of networks with the interface of `training.networks.Constructed`.

    --init is "fit": LinearConv layers fitted to the convolutions of --weights, or without these of random ones;
    "scratch": the same layers, and all else, at random initial weights.
    """

    starts = ("fit", "scratch")
    defaults: dict[str, object] = {"init": "fit", "recipe": "tune", "width": 1.0}

    def add_options(self, group: argparse._ArgumentGroup) -> None:
        """Add the options that say which network, and how it is converted and taught."""
        add_options(group)
        add = group.add_argument
        add("--network", required=True, metavar="LIBRARY:NAME", help="torchvision:NAME or timm:NAME")
        held = "state_dict, or a checkpoint that holds one (default: random weights)"
        add("--weights", type=Path, metavar="FILE", help=held)
        chosen = "size of the result; alpha (of rank) or -r (of lowrank) is chosen for it, layer by layer"
        add("--budget", type=positive_share, metavar="SHARE", help=chosen)
        add("--of", choices=UNITS, default="parameters", help="the size that --budget means (default: parameters)")
        fitted = f"training images that layers are fitted on; 0: to their filters (default: {CALIBRATE})"
        add("--calibrate", type=non_negative_int, default=CALIBRATE, metavar="N", help=fitted)
        soft = (
            "share of the loss that are soft targets of the network before conversion (default: 0.5); only: all of it"
        )
        add("--distill", type=_part_of_loss, nargs="?", const=0.5, metavar="SHARE", help=soft)
        add("--temperature", type=positive_float, help="of the soft targets (default: 4)")

    def check(self, options: argparse.Namespace) -> None:
        """Raise a ValueError for options that do not go together."""
        variant = options.variant
        if options.dense_epochs:
            raise ValueError("--dense-epochs: train with -t dense first, and give its best.pt as --weights")
        if options.distill and not options.weights:
            raise ValueError("--distill learns from the network before conversion: give its --weights")
        if options.temperature and not options.distill:
            raise ValueError("--temperature goes with --distill")
        if options.budget is None and options.of != "parameters":
            raise ValueError("--of says what --budget means: give one")
        if variant.type == "dense" and options.budget is not None:
            raise ValueError("--budget is for what is converted: -t dense is not")
        if options.budget is not None:
            CompressionTarget(options.budget, options.of).check(variant.type, *_given(variant), grow=False)

    def label(self, options: argparse.Namespace) -> list[str]:
        """Return what distinguishes a network from others, as parts of a name."""
        variant = options.variant
        if options.budget is not None:
            setting = [variant.type, f"budget{options.budget:g}" + ("macs" if options.of == "macs" else "")]
        else:
            setting = [variant.label] + [f"alpha{variant.alpha:g}"] * (variant.alpha != 0.5)
        more = ["scratch"] * (options.init == "scratch") + ["distill"] * bool(options.distill)
        return [options.network.replace(":", "-"), *setting, *more]

    def build(self, request: Request) -> Built:
        """Return the network, converted, with its weights.

        Raises:
            UsageError: where there is no such network, its weights do not fit, or it cannot be converted.
        """
        try:
            with warnings_as_lines(request.options.program):
                return self._build(request)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _build(self, request):
        options, recipe, variant = request.options, request.recipe, request.options.variant
        shape = {"in_channels": request.input_size[0], "num_classes": request.num_classes}
        network = partial(load_network, options.network, **shape)
        dense = start = network().to(request.group.device)
        if options.weights:
            teaches = bool(recipe.distill) and not options.count_only
            _load(dense, options.weights, request.num_classes, teaches)
        if recipe.init == "scratch":
            torch.manual_seed(options.seed)
            start = network().to(request.group.device)
        settings = {"weights": options.weights and _digest(options.weights)}
        fresh = {"name": options.network, **shape, "image_size": request.input_size[1], "conversion": None}
        record = request.recorded() or fresh
        if variant.type == "dense":
            model = deepcopy(start)
        else:
            settings |= {name: getattr(options, name) for name in ("budget", "of", "calibrate")}
            if options.budget is not None:
                settings["alpha" if variant.type == "rank" else "rank"] = None  # each layer has its own
            model = None
            if not record["conversion"]:
                model, record["conversion"] = _convert(dense, request)
            if model is None or recipe.init == "scratch":
                model = convert_again(start, record["conversion"])
        teacher = dense if recipe.distill else None
        return Built(model, dense, _title(options), teacher, settings, record)


def _load(model, path, num_classes, teaches):
    """Load the weights, and tell what is left as it is; a network that teaches needs all of its own."""
    left = load_weights(model, path, num_classes)
    if left and teaches:
        raise ConversionError(f"--distill: {path} is of another number of classes ({', '.join(left)}), and no teacher")
    if left:
        print(f"{path} is of another number of classes: {', '.join(left)} start at random")


def _convert(dense, request):
    """In the first process the converted network, in the others None; and in all what was chosen for each layer."""
    options, variant, group = request.options, request.options.variant, request.group
    needed = options.calibrate and (request.recipe.init == "fit" or options.budget is not None)
    images = request.images(options.calibrate) if needed and not options.count_only else None  # by all processes
    channels = request.input_size[0]
    rank, alpha = _given(variant) if options.budget is not None else (variant.rank, variant.alpha)
    model = None

    def convert_and_tell():
        nonlocal model
        model, report = convert(
            dense,
            variant.type,
            rank=rank,
            alpha=alpha,
            **{name: getattr(variant, name) for name in ("sparsity", "compute")},
            budget=options.budget,
            of=options.of,
            skip=[lambda _, layer: layer.in_channels == channels] if request.recipe.stem == "dense" else (),
            init="fit" if request.recipe.init == "fit" else "scratch",
            calibration=images,
            example_input=torch.zeros(1, *request.input_size),
            return_report=True,
        )
        print(report.totals)
        return setting_of(report, variant.type)

    setting = group.of_first(convert_and_tell)
    return model, setting


def _given(variant):
    """Rank and alpha where they are not at their defaults."""
    default = type(variant)(variant.type)
    return tuple(
        None if getattr(variant, name) == getattr(default, name) else getattr(variant, name)
        for name in ("rank", "alpha")
    )


def _title(options):
    variant = options.variant
    if options.budget is None:
        return f"{options.network}: {variant}"
    chosen = "full rank, alpha" if variant.type == "rank" else f"alpha {variant.alpha:g}, the rank"
    return f"{options.network}: LinearConv, {chosen} of each layer for {options.budget:g} of the {options.of}"


def _digest(path):
    """What a file holds, in a word: a run goes on with the same weights, and the same teacher, only."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def _part_of_loss(text):
    return 1.0 if text == "only" else positive_share(text)


_part_of_loss.__name__ = "share"
