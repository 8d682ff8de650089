"""The networks of a training script: constructors that take the convolution class as an argument.

main({"VGG11": VGG11}, RECIPE)        # constructors (conv, in_channels, num_classes, width) by name
main(Library(), RECIPE)               # networks of torchvision and timm, converted: library.py
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

from baselines import HELP as BASELINES_HELP
from images.info import one_line, physical_memory
from linearconv_convert.report import count_parameters
from linearconv_convert.weights import STARTS, initialise
from linearconv_sparse import SCHEDULES
from linearconv_variants import add_options, positive_float
from training.errors import UsageError
from training.recipe import Recipe

BYTES = 4  # of a parameter
Shape = tuple[int, int, int]  # (channels, height, width) of one image


@dataclass
class Network:
    """A network, its dense counterpart, and the record from which a checkpoint's network is built again."""

    model: nn.Module
    dense: nn.Module  # the same network with nn.Conv2d
    record: dict[str, object] | None = None


class Networks:
    """The networks of an architecture.

    Args:
        networks: constructors (conv, in_channels, num_classes, width) by name; the first one is the default.
    """

    starts = STARTS  # choices of --init
    without = ("distill", "temperature")  # options of a recipe that these networks do not have
    defaults: dict[str, object] = {}  # default values of options
    is_converted = False  # True for networks with a method `convert`, see library.py

    def __init__(self, networks: dict[str, Callable[..., nn.Module]]) -> None:
        self.networks = networks

    def add_options(self, group: argparse._ArgumentGroup) -> None:
        """Add the options that choose the network."""
        add_options(group, others=BASELINES_HELP)
        add = group.add_argument
        add("--pruning", choices=SCHEDULES, default="gradual", help="controller of the sparse type (default: gradual)")
        add("--width", type=positive_float, default=1.0, help="multiplies every channel count (default: 1)")
        names = tuple(self.networks)
        add("--network", choices=names, default=names[0], help="which network of this family (default: the first)")

    def label(self, options: argparse.Namespace) -> list[str]:
        """Return the parts of a run's name that distinguish the network from others."""
        variant = options.variant
        width = [f"width{options.width:g}"] if options.width != 1 else []
        alpha = [f"alpha{variant.alpha:g}"] if variant.alpha != 0.5 and variant.type != "dense" else []
        return [options.network, *width, variant.label, *alpha]

    def title(self, options: argparse.Namespace) -> str:
        """Return a description of network and variant."""
        return f"{options.network}: {options.variant}"

    def settings(self, options: argparse.Namespace) -> dict[str, object]:
        """Return the settings of this kind of networks that decide the result."""
        return {}

    def build(self, options: argparse.Namespace, recipe: Recipe, input_size: Shape, num_classes: int) -> Network:
        """Return the network with its initial weights, or raise a UsageError."""
        network = self.networks[options.network]
        shape = {"in_channels": input_size[0], "num_classes": num_classes, "width": options.width}
        try:
            with torch.device("meta"):  # shapes without memory
                parameters = count_parameters(network(conv=nn.Conv2d, **shape))
            if 2 * BYTES * parameters > physical_memory():
                raise MemoryError(f"with {parameters:,} parameters it does not fit in the memory of this machine")
            model = options.variant.build(network, **shape)
            dense = network(conv=nn.Conv2d, **shape)
        except (ValueError, TypeError, OverflowError, RuntimeError, MemoryError) as error:
            raise UsageError(f"the network cannot be built: {one_line(error)}") from None
        if recipe.init != "published":
            initialise(model, recipe.init)
        return Network(model, dense)
