"""Networks of torchvision and timm, converted to LinearConv for training.

    --network torchvision:resnet18 --weights resnet18.pth -t rank --budget 0.5

Rank 0 converts the network, calibrated on training images. Checkpoints hold a record of the choices for each layer.
Resumed runs and the other processes build the same layers from this record.
"""

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from linearconv_convert.budget import UNITS, CompressionTarget
from linearconv_convert.convert import convert
from linearconv_convert.networks import convert_again, load_network, load_weights, setting_of
from linearconv_convert.report import warnings_as_lines
from linearconv_convert.surgery import ConversionError
from linearconv_variants import Variant, add_options, non_negative_int, positive_share
from training.distributed import Group
from training.errors import UsageError
from training.networks import Network, Shape
from training.recipe import OTHER_DEFAULTS, Recipe

CALIBRATE = OTHER_DEFAULTS["calibrate"]  # images


class Library:
    """The networks of torchvision and timm, with the interface of :class:`training.networks.Networks`.

    `--init fit` fits LinearConv layers to the convolutions of --weights, or to random ones without --weights.
    `--init scratch` draws the weights of the whole converted network.
    """

    starts = ("fit", "scratch")
    defaults: dict[str, object] = {"init": "fit", "recipe": "tune", "width": 1.0}
    is_converted = True
    has_teacher = True

    def add_options(self, group: argparse._ArgumentGroup) -> None:
        """Add the options that choose the network and its conversion."""
        add_options(group)
        add = group.add_argument
        add("--network", required=True, metavar="LIBRARY:NAME", help="torchvision:NAME or timm:NAME")
        weights = "state_dict, or a checkpoint that holds one (default: random weights)"
        add("--weights", type=Path, metavar="FILE", help=weights)
        budget = "size of the result; alpha (of rank) or -r (of lowrank) is chosen for it, layer by layer"
        add("--budget", type=positive_share, metavar="SHARE", help=budget)
        add("--of", choices=UNITS, default="parameters", help="the size that --budget means (default: parameters)")
        images = f"training images that layers are fitted on; 0: to their filters (default: {CALIBRATE})"
        add("--calibrate", type=non_negative_int, default=CALIBRATE, metavar="N", help=images)

    def check(self, options: argparse.Namespace) -> None:
        """Raise a ValueError for options that exclude each other."""
        variant = options.variant
        if options.dense_epochs:
            raise ValueError("--dense-epochs: train with -t dense first, and give its best.pt as --weights")
        if options.distill and not options.weights:
            raise ValueError("--distill learns from the network before conversion: give its --weights")
        if options.budget is not None and variant.type != "dense":
            CompressionTarget(options.budget, options.of).check(variant.type, *_given(variant), grow=False)

    def label(self, options: argparse.Namespace) -> list[str]:
        """Return the parts of a run's name that distinguish the network from others."""
        variant = options.variant
        if options.budget is not None:
            setting = [variant.type, f"budget{options.budget:g}" + ("macs" if options.of == "macs" else "")]
        else:
            setting = [variant.label] + [f"alpha{variant.alpha:g}"] * (variant.alpha != 0.5)
        more = ["scratch"] * (options.init == "scratch") + ["distill"] * bool(options.distill)
        return [options.network.replace(":", "-"), *setting, *more]

    def title(self, options: argparse.Namespace) -> str:
        """Return a description of network and variant."""
        if options.budget is None:
            return f"{options.network}: {options.variant}"
        return f"{options.network}: LinearConv, {options.variant.type}, {options.budget:g} of the {options.of}"

    def settings(self, options: argparse.Namespace) -> dict[str, object]:
        """Return the settings of this kind of networks that decide the result."""
        settings = {"weights": options.weights and _digest(options.weights)}  # also the teacher's
        if options.variant.type != "dense":
            settings |= {name: getattr(options, name) for name in ("budget", "of", "calibrate")}
            if options.budget is not None:
                settings["alpha" if options.variant.type == "rank" else "rank"] = None  # each layer has its own
        return settings

    def images_needed(self, options: argparse.Namespace, recipe: Recipe) -> int:
        """Return the number of training images that :meth:`convert` needs."""
        is_fitted = options.variant.type != "dense" and (recipe.init == "fit" or options.budget is not None)
        return options.calibrate if is_fitted else 0

    def build(
        self, options: argparse.Namespace, recipe: Recipe, input_size: Shape, num_classes: int, group: Group
    ) -> Network:
        """Return the network before its conversion, with its weights, or raise a UsageError."""
        shape = {"in_channels": input_size[0], "num_classes": num_classes}
        with _errors_in_one_line(options):
            network = partial(load_network, options.network, **shape)
            dense = start = network().to(group.device)
            if options.weights:
                teaches = bool(recipe.distill) and not options.count_only
                _load(dense, options.weights, num_classes, teaches)
            if recipe.init == "scratch":
                torch.manual_seed(options.seed)
                start = network().to(group.device)
        record = {"name": options.network, **shape, "image_size": input_size[1], "conversion": None}
        return Network(start, dense, record)

    def convert(
        self,
        network: Network,
        options: argparse.Namespace,
        recipe: Recipe,
        input_size: Shape,
        group: Group,
        images: list[Tensor] | None,
    ) -> Network:
        """Return the converted network, or raise a UsageError.

        The network of :meth:`build` has the checkpoint's record if the run is resumed; `images` are for calibration.
        """
        record = dict(network.record)
        if options.variant.type == "dense":
            return Network(deepcopy(network.model), network.dense, record)
        model = None
        with _errors_in_one_line(options):
            if not record["conversion"]:
                conversion = None
                if group.is_rank0:
                    model, conversion = _convert(network.dense, options, recipe, input_size, images)
                record["conversion"] = group.broadcast_from_rank0(lambda: conversion)
            if model is None or recipe.init == "scratch":
                model = convert_again(network.model, record["conversion"])
        return Network(model, network.dense, record)


@contextmanager
def _errors_in_one_line(options: argparse.Namespace) -> Iterator[None]:
    """Print warnings of the conversion as one line each, and raise its errors as UsageError."""
    try:
        with warnings_as_lines(options.program):
            yield
    except ValueError as error:
        raise UsageError(str(error)) from None


def _load(model, path, num_classes, teaches):
    """Load weights, and print the layers that the weights do not fit; a teacher needs weights for all layers."""
    left = load_weights(model, path, num_classes)
    if left and teaches:
        raise ConversionError(f"--distill: {path} is of another number of classes ({', '.join(left)}), and no teacher")
    if left:
        print(f"{path} is of another number of classes: {', '.join(left)} start at random")


def _convert(dense, options, recipe, input_size, images):
    """Return the converted network, and the record of the choices for each layer."""
    variant, channels = options.variant, input_size[0]
    rank, alpha = (variant.rank, variant.alpha) if options.budget is None else _given(variant)
    is_first_layer = [lambda _, layer: layer.in_channels == channels]
    model, report = convert(
        dense,
        variant.type,
        rank=rank,
        alpha=alpha,
        sparsity=variant.sparsity,
        compute=variant.compute,
        budget=options.budget,
        of=options.of,
        skip=is_first_layer if recipe.stem == "dense" else (),
        init="fit" if recipe.init == "fit" else "scratch",
        calibration=images,
        example_input=torch.zeros(1, *input_size),
        return_report=True,
    )
    print(report.totals)
    return model, setting_of(report, variant.type)


def _given(variant):
    """Return rank and alpha; each is None if it has its default value."""
    default = Variant(variant.type)
    rank = None if variant.rank == default.rank else variant.rank
    alpha = None if variant.alpha == default.alpha else variant.alpha
    return rank, alpha


def _digest(path):
    return f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"
