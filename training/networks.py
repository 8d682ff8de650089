"""Where the networks of a script come from: its constructors, or another source with the interface of `Constructed`.

main({"VGG11": VGG11}, RECIPE)        # constructors (conv, in_channels, num_classes, width) by name
main(Library(), RECIPE)               # networks of torchvision and timm, converted: converted.py
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn as nn
from torch import Tensor

from baselines import HELP as BASELINES_HELP
from dataloaders import Loader
from linearconv_convert.weights import STARTS, initialise
from linearconv_sparse import SCHEDULES
from linearconv_variants import add_options
from training.distributed import Group
from training.errors import UsageError
from training.numbers import positive_float
from training.settings import Recipe


@dataclass(frozen=True)
class Request:
    """What a network is to be, and what there is to build it from."""

    options: argparse.Namespace
    recipe: Recipe
    input_size: tuple[int, int, int]  # (channels, height, width) of one image
    num_classes: int
    group: Group
    images: Callable[[int], list[Tensor]]  # so many training images, as the first epoch will show them; reads the data
    recorded: Callable[[], dict | None]  # the record in the checkpoint that the run goes on from; None where it begins


@dataclass(frozen=True)
class Built:
    """A network to be trained, and what belongs to it."""

    model: nn.Module
    dense: nn.Module  # the same with nn.Conv2d
    title: str  # network and variant in words
    teacher: nn.Module | None = None  # gives soft targets
    settings: dict[str, object] = field(default_factory=dict)  # what decides the result beside options that all have
    record: dict[str, object] | None = None  # what it is built from again; kept in checkpoints


class Constructed:
    """Networks that take their convolution as an argument.

    Args:
        networks: constructors (conv, in_channels, num_classes, width) by name, the default first.
    """

    starts = STARTS  # values of --init
    defaults: dict[str, object] = {"distill": None, "temperature": None}  # of options; there is no teacher

    def __init__(self, networks: dict[str, Callable[..., nn.Module]]) -> None:
        self.networks = networks

    def add_options(self, group: argparse._ArgumentGroup) -> None:
        """Add the options that say which network."""
        add_options(group, others=BASELINES_HELP)
        add = group.add_argument
        add("--pruning", choices=SCHEDULES, default="gradual", help="controller of the sparse type (default: gradual)")
        add("--width", type=positive_float, default=1.0, help="multiplies every channel count (default: 1)")
        names = tuple(self.networks)
        add("--network", choices=names, default=names[0], help="which network of this family (default: the first)")

    def check(self, options: argparse.Namespace) -> None:
        """Raise a ValueError for options that do not go together."""

    def label(self, options: argparse.Namespace) -> list[str]:
        """Return what distinguishes a network from others, as parts of a name."""
        variant = options.variant
        width = [f"width{options.width:g}"] if options.width != 1 else []
        alpha = [f"alpha{variant.alpha:g}"] if variant.alpha != 0.5 and variant.type != "dense" else []
        return [options.network, *width, variant.label, *alpha]

    def build(self, request: Request) -> Built:
        """Return the network with its initial weights.

        Raises:
            UsageError: where it cannot be built.
        """
        options, recipe, network = request.options, request.recipe, self.networks[request.options.network]
        shape = {"in_channels": request.input_size[0], "num_classes": request.num_classes, "width": options.width}
        try:
            build = partial(_with_dense_stem, network) if recipe.stem == "dense" else network
            model = options.variant.build(build, **shape)
            dense = network(conv=nn.Conv2d, **shape)
        except ValueError as error:
            raise UsageError(f"the network cannot be built: {error}") from None
        if recipe.init != "published":
            initialise(model, recipe.init)
        return Built(model, dense, f"{options.network}: {options.variant}")


def training_images(loader: Loader, count: int) -> list[Tensor]:
    """Return images that a training loader's next pass will begin with, in batches of 64; the loader stays as it is.

    Args:
        loader: of training images.
        count: of images; all, where there are fewer.
    """
    state, images = loader.state_dict(), []
    for batch, _ in loader:
        images.append(batch)
        if sum(map(len, images)) >= count:
            break
    loader.load_state_dict(state)
    return list(torch.cat(images)[:count].split(64))


def _with_dense_stem(network, conv=nn.Conv2d, *, in_channels, **arguments):
    """The network with nn.Conv2d for what convolves the images themselves."""

    def layer(channels, *rest, **more):
        return (nn.Conv2d if channels == in_channels else conv)(channels, *rest, **more)

    return network(conv=layer, in_channels=in_channels, **arguments)
