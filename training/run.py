"""A run from its command line to its report: build, count, print, load data, train, save, report.

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250))

is all that a script in models/ calls.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn

from dataloaders import DataError, dataloaders, describe, kept_in_memory
from linearconv import LinearConv
from linearconv_convert.starting import initialise
from training import checkpoints, counting, report, run_folder
from training.distributed import join
from training.errors import EXPECTED, UsageError, report_failure
from training.files import write_json
from training.options import make_parser, parse_arguments, run_name
from training.recipes import recipe_for
from training.settings import Recipe, TrainingSettings
from training.trainer import Trainer


def main(
    networks: dict[str, Callable[..., nn.Module]],
    recipe: Recipe,
    digits_recipe: Recipe | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a training script from its command line to its report.

    Args:
        networks: constructors (conv, in_channels, num_classes, width) by name, the default first.
        recipe: the architecture's.
        digits_recipe: for the 1,438 images of the bundled digits, for which the published recipe is not made.
        argv: arguments; those of the process where left out.

    Raises:
        SystemExit: with one line on stderr and code 2 for bad input or files that cannot be written, 3 for numbers that
            have gone wrong, 130 when interrupted, 143 when terminated.
    """
    options = parse_arguments(make_parser(networks, recipe, digits_recipe), argv)
    if int(os.environ.get("RANK", "0")):  # of several processes the first one speaks; errors are told by all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lasts
    try:
        with join(options.device) as group:
            _run(networks[options.network], (recipe, digits_recipe), options, group)
    except EXPECTED as error:
        sys.exit(report_failure(error, options.program))


def _run(network, recipes, options, group):
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    resume = "auto" if group.restarts and options.resume == "never" else options.resume  # torchrun's restarts go on
    input_size, num_classes = _image_shape(options)
    torch.manual_seed(options.seed)
    recipe = recipe_for(options, options.dataset, *recipes)
    model, dense, counts = _build_and_count(network, options, recipe, input_size, num_classes)
    report.show_counts(options, counts, input_size, num_classes)
    if options.output and options.resume == "never":  # a folder that cannot be used is told before any waiting
        group.of_first(lambda: run_folder.open_folder(options.output, None, resume))
    if options.count_only:
        if options.output and group.is_first:
            counted = report.make_report(options, counts, num_classes, group.device)
            write_json(Path(options.output) / run_folder.REPORT, counted)
        return

    channels_last = options.channels_last and _channels_last_is_safe(model, group.device)
    dataset, recipe, in_memory, loaders = _load_data(recipes, options, channels_last, group)
    default = Path("ckpt") / Path(options.program).stem / run_name(options, dataset)
    folder = group.of_first(lambda: run_folder.open_folder(options.output, default, resume))
    if group.is_first and group.size > 1 and not options.output:
        (folder / run_folder.LOG).touch()  # takes the default folder's number, should torchrun start it again
    given = options.pick("network", "variant", "width", "seed", "amp", "validation")
    given |= {"num_classes": num_classes, "processes": group.size, "in_memory": in_memory}
    settings = TrainingSettings(recipe=recipe, dataset=dataset, **given)
    given = options.pick("compile", "sync_batch_norm", "save_every", "tensorboard") | {"channels_last": channels_last}
    trainer = Trainer(model, loaders, settings, folder, group, dense=dense, **given)
    if resume == "always" or group.of_first(lambda: checkpoints.holds_checkpoint(folder)):
        trainer.resume(options.may_change)
    elif group.is_first and (folder / run_folder.LOG).exists():  # of a run that ended before its first checkpoint
        run_folder.write_log(folder, [])
    progress = trainer.fit()
    flipped = trainer.evaluate_flipped()  # by all processes
    if group.is_first:
        counts["nonzero_parameters"] = counting.count_nonzero_parameters(trainer.model)
        data = {"dataset": dataset, "in_memory": in_memory}
        trained = {**data, **vars(recipe), **progress.outcome(), **flipped}
        done = report.make_report(options, counts, num_classes, group.device) | trained
        write_json(folder / run_folder.REPORT, done)
        report.show_outcome(done, folder / run_folder.REPORT)


def _image_shape(options):
    """(channels, height, width) of an image and the number of classes, without reading an image."""
    dataset = options.dataset or "cifar10"  # left out, the data decides later; digits have CIFAR-10's shape
    if options.count_only and dataset == "imagefolder":
        channels, classes, size = 3, 10, options.image_size
    else:
        info = describe(dataset, options.data_root, options.image_size)
        channels, classes, size = info.in_channels, info.num_classes, info.image_size
    return (options.in_channels or channels, size, size), options.num_classes or classes


def _build_and_count(network, options, recipe, input_size, num_classes):
    """The network and the dense one, their initial weights drawn, and their counts side by side."""
    arguments = {"in_channels": input_size[0], "num_classes": num_classes, "width": options.width}
    try:
        build = partial(_with_dense_stem, network) if recipe.stem == "dense" else network
        model = options.variant.build(build, **arguments)
        dense = network(conv=nn.Conv2d, **arguments)
    except ValueError as error:
        raise UsageError(f"the network cannot be built: {error}") from None
    if recipe.init != "published":
        initialise(model, recipe.init)
    try:
        return model, dense, report.count_against_dense(model, dense, input_size)
    except RuntimeError as error:
        size = "x".join(map(str, input_size))
        raise UsageError(f"{options.network} does not take {size} images: {error}") from None


def _with_dense_stem(network, conv=nn.Conv2d, *, in_channels, **arguments):
    """The network with nn.Conv2d for what convolves the images themselves."""

    def layer(channels, *rest, **more):
        return (nn.Conv2d if channels == in_channels else conv)(channels, *rest, **more)

    return network(conv=layer, in_channels=in_channels, **arguments)


def _channels_last_is_safe(model, device):
    """False where channels_last would crash: torch 2.11 to 2.15 corrupt memory on a CPU in the weight gradient of a
    strided 1x1 convolution of fewer than 16 input channels, dense or LinearConv alike (thin ResNets have them)."""
    layers = (layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, LinearConv)))
    strided = (layer for layer in layers if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return device.type != "cpu" or all(layer.in_channels >= 16 for layer in strided)


def _load_data(recipes, options, channels_last, group):
    """Name, recipe, whether in memory, and loaders of what was asked for, or of CIFAR-10, or else of the digits."""

    def load(name):
        recipe = recipe_for(options, name, *recipes)
        place = {"name": name, "root": options.data_root, "device": group.device, "image_size": options.image_size}
        copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
        # The first process decides for all: what is free is less once one has read the images.
        ask = partial(kept_in_memory, **place, in_memory=options.in_memory, copies=copies)
        in_memory = group.of_first(ask)
        if not in_memory:
            print("The images are streamed from disk, and cropped at random sizes; --in-memory chooses.")
        given = options.pick("download", "seed", "validation", "workers") | {"flip": recipe.flip}
        given["in_memory"] = "yes" if in_memory else "no"
        batches = {"batch_size": recipe.batch_size, "channels_last": channels_last, "shard": (group.rank, group.size)}
        _, train, test = group.first_before_others(partial(dataloaders, **place, **given, **batches))
        return name, recipe, in_memory, (train, test)

    if options.dataset:
        return load(options.dataset)
    try:
        return load("cifar10")
    except DataError as error:
        print(f"CIFAR-10 is not to be had: {error}")
        print("Training on the bundled digits instead, with a recipe of their own; --dataset chooses another set.")
        return load("digits")
