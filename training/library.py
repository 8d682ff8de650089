"""Networks of torchvision and timm, converted to LinearConv for training.

    --network torchvision:resnet18 --weights resnet18.pth -t rank --budget 0.5

Rank 0 converts the network, calibrated on training images. Checkpoints hold a record of the choices for each layer.
Resumed runs and the other processes build the same layers from this record.
"""

import argparse
import hashlib
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from dataloaders import Loader
from linearconv_convert.balance import balance
from linearconv_convert.budget import UNITS
from linearconv_convert.convert import convert
from linearconv_convert.networks import convert_again, load_network, load_weights, setting_of
from linearconv_convert.report import warnings_as_lines
from linearconv_convert.surgery import ConversionError
from linearconv_variants import Variant, add_options, non_negative_int, positive_share
from training.distributed import Group
from training.networks import Network, Shape
from training.recipe import Recipe


class Library:
    """The networks of torchvision and timm, with the interface of :class:`training.networks.Networks`.

    `--init fit` fits LinearConv layers to the convolutions of --weights, or to random ones without --weights.
    `--init scratch` draws the weights of the whole converted network.
    """

    starts = ("fit", "scratch")
    without = ("dense_epochs",)  # train with -t dense instead, and give its best.pt as --weights
    defaults: dict[str, object] = {"init": "fit", "recipe": "tune", "width": 1.0}
    is_converted = True

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
        images = "training images that layers are fitted on; 0: to their filters (default: 512)"
        add("--calibrate", type=non_negative_int, default=512, metavar="N", help=images)

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
        weights = options.weights and hashlib.sha256(options.weights.read_bytes()).hexdigest()[:16]
        settings = {"weights": weights and f"sha256:{weights}"}  # also the teacher's
        if options.variant.type != "dense":
            settings |= {name: getattr(options, name) for name in ("budget", "of", "calibrate")}
            if options.budget is not None:
                settings["alpha" if options.variant.type == "rank" else "rank"] = None  # each layer has its own
        return settings

    def build(self, options: argparse.Namespace, recipe: Recipe, input_size: Shape, num_classes: int) -> Network:
        """Return the network before its conversion, with its weights, or raise a ConversionError."""
        shape = {"in_channels": input_size[0], "num_classes": num_classes}
        with warnings_as_lines(options.program):
            dense = start = load_network(options.network, **shape)
            if options.weights:
                _load(dense, options, num_classes)
            if recipe.init == "scratch":
                torch.manual_seed(options.seed)
                start = load_network(options.network, **shape)
        record = {"name": options.network, **shape, "image_size": input_size[1], "conversion": None}
        return Network(start, dense, record)

    def convert(
        self, network: Network, options: argparse.Namespace, recipe: Recipe, group: Group, loader: Loader | None
    ) -> Network:
        """Return the converted network, or raise a ConversionError.

        Args:
            network: the network of :meth:`build`, with the record in the checkpoint if a run is resumed.
            loader: the training images, for calibration; None: the layers are fitted to their filters.
        """
        record, model = dict(network.record), None
        network.dense.to(group.device)
        with warnings_as_lines(options.program):
            if options.variant.type != "dense" and not record["conversion"]:
                record["balanced"] = recipe.init == "fit"
                if group.is_rank0:
                    model, record["conversion"] = _convert(network, options, recipe, loader)
                record["conversion"] = group.broadcast_from_rank0(lambda: record["conversion"])
            if model is None or recipe.init == "scratch":
                model = convert_again(deepcopy(network.model), record["conversion"])
            if record.get("balanced"):
                balance(model)
        return Network(model, network.dense, record)


def _load(model, options, num_classes):
    """Load weights, and print the layers that the weights do not fit; a teacher needs weights for all layers."""
    left = ", ".join(load_weights(model, options.weights, num_classes))
    found = f"{options.weights} is of another number of classes"
    if left and options.distill and not options.count_only:
        raise ConversionError(f"--distill: {found} ({left}), and no teacher")
    if left:
        print(f"{found}: {left} start at random")


def _convert(network, options, recipe, loader):
    """Return the converted network, and the record of the choices for each layer."""
    variant, channels, size = options.variant, network.record["in_channels"], network.record["image_size"]
    rank, alpha, images = variant.rank, variant.alpha, None
    if options.budget is not None:  # the budget chooses
        default = Variant(variant.type)
        rank = None if rank == default.rank else rank
        alpha = None if alpha == default.alpha else alpha
    if loader and options.calibrate and (recipe.init == "fit" or options.budget is not None):
        images = training_images(loader, options.calibrate)
    settings = {"rank": rank, "alpha": alpha, "sparsity": variant.sparsity, "compute": variant.compute}
    settings |= {"init": recipe.init, **options.pick("budget", "of")}
    inputs = {"calibration": images, "example_input": torch.zeros(1, channels, size, size)}
    model, report = convert(network.dense, variant.type, **settings, **inputs, return_report=True)
    print(report.totals)
    return model, setting_of(report, variant.type)


def training_images(loader: Loader, count: int) -> list[Tensor]:
    """Return the first `count` images of a loader's next pass, in batches of 64; the loader's state is unchanged."""
    state, images = loader.state_dict(), []
    for batch, _ in loader:
        images.append(batch)
        if sum(map(len, images)) >= count:
            break
    loader.load_state_dict(state)
    return list(torch.cat(images)[:count].split(64))
