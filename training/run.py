"""A run from its command line to its report: build, count, print, load data, train, save, report.

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250))

is all that a script in models/ calls.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn

from dataloaders import DataError, Loader, dataloaders, describe, kept_in_memory
from linearconv import LinearConv
from training import checkpoints, counting, report
from training.checkpoints import write_json
from training.distributed import join
from training.errors import EXPECTED, UsageError, report_failure
from training.networks import Constructed, Request, training_images
from training.options import make_parser, parse_arguments, run_name
from training.recipe import Recipe, TrainingSettings, recipe_for
from training.trainer import Trainer


def main(
    networks: dict[str, Callable[..., nn.Module]] | Constructed,
    recipe: Recipe,
    digits_recipe: Recipe | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a training script from its command line to its report.

    Args:
        networks: constructors (conv, in_channels, num_classes, width) by name, the default first; or another source of
            networks, with the interface of :class:`training.networks.Constructed`.
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
            _run((recipe, digits_recipe), options, group)
    except EXPECTED as error:
        sys.exit(report_failure(error, options.program))


def _run(recipes, options, group):
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    resume = "auto" if group.restarts and options.resume == "never" else options.resume  # torchrun's restarts go on
    input_size, num_classes = _image_shape(options)
    data = cache(partial(_load_data, recipes, options, group))  # not before they are needed

    @cache
    def folder():
        default = None
        if not options.output:
            default = Path("ckpt") / Path(options.program).stem / run_name(options, data().dataset)
        return group.of_first(lambda: checkpoints.open_folder(options.output, default, resume))

    def recorded():
        if resume == "never" or options.count_only:
            return None
        path = folder()
        load = partial(checkpoints.load_newest, path, warn=str)  # the trainer tells what is damaged
        return group.of_first(lambda: load()[0].get("network") if checkpoints.holds_checkpoint(path) else None)

    torch.manual_seed(options.seed)
    recipe = recipe_for(options, options.dataset, *recipes)
    images = lambda count: training_images(data().loaders[0], count)  # noqa: E731
    built = options.networks.build(Request(options, recipe, input_size, num_classes, group, images, recorded))
    model, counts = built.model, _count(built, options, input_size)
    report.show_counts(built.title, counts, input_size, num_classes)
    if options.output:
        folder()  # one that cannot be used is told before any waiting
    if options.count_only:
        if options.output and group.is_first:
            counted = report.make_report(options, counts, num_classes, group.device) | built.settings
            write_json(folder() / checkpoints.REPORT, counted)
        return

    dataset, recipe, in_memory, loaders = data()
    channels_last = options.channels_last and _channels_last_is_safe(model, group.device)
    for loader in loaders:
        loader.memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if group.is_first and group.size > 1 and not options.output:
        (folder() / checkpoints.LOG).touch()  # takes the default folder's number, should torchrun start it again
    given = options.pick("network", "variant", "width", "seed", "amp", "validation")
    given |= {"num_classes": num_classes, "processes": group.size, "in_memory": in_memory}
    settings = TrainingSettings(recipe=recipe, dataset=dataset, of_network=built.settings, **given)
    given = options.pick("compile", "sync_batch_norm", "save_every", "tensorboard") | {"channels_last": channels_last}
    given |= {"dense": built.dense, "teacher": built.teacher, "record": built.record}
    trainer = Trainer(model, loaders, settings, folder(), group, **given)
    if resume == "always" or group.of_first(lambda: checkpoints.holds_checkpoint(folder())):
        trainer.resume(options.may_change)
    elif group.is_first and (folder() / checkpoints.LOG).exists():  # of a run that ended before its first checkpoint
        checkpoints.write_log(folder(), [])
    progress = trainer.fit()
    flipped = trainer.evaluate_flipped()  # by all processes
    if group.is_first:
        counts["nonzero_parameters"] = counting.count_nonzero_parameters(trainer.model)
        of_data = {"dataset": dataset, "in_memory": in_memory}
        trained = {**of_data, **vars(recipe), **progress.outcome(), **flipped}
        done = report.make_report(options, counts, num_classes, group.device) | built.settings | trained
        write_json(folder() / checkpoints.REPORT, done)
        report.show_outcome(done, folder() / checkpoints.REPORT)


def _image_shape(options):
    """(channels, height, width) of an image and the number of classes, without reading an image."""
    dataset = options.dataset or "cifar10"  # left out, the data decides later; digits have CIFAR-10's shape
    if options.count_only and dataset == "imagefolder":
        channels, classes, size = 3, 10, options.image_size
    else:
        info = describe(dataset, options.data_root, options.image_size)
        channels, classes, size = info.in_channels, info.num_classes, info.image_size
    return (options.in_channels or channels, size, size), options.num_classes or classes


def _count(built, options, input_size):
    """The counts of the network and of the dense one side by side."""
    try:
        return report.count_against_dense(built.model, built.dense, input_size)
    except (RuntimeError, ValueError, AssertionError) as error:  # networks refuse images in these ways
        size = "x".join(map(str, input_size))
        raise UsageError(f"{options.network} does not take {size} images: {error}") from None


def _channels_last_is_safe(model, device):
    """False where channels_last would crash: torch 2.11 to 2.15 corrupt memory on a CPU in the weight gradient of a
    strided 1x1 convolution of fewer than 16 input channels, dense or LinearConv alike (thin ResNets have them)."""
    layers = (layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, LinearConv)))
    strided = (layer for layer in layers if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return device.type != "cpu" or all(layer.in_channels >= 16 for layer in strided)


class _Data(NamedTuple):
    dataset: str
    recipe: Recipe
    in_memory: bool
    loaders: tuple[Loader, Loader]  # training and test


def _load_data(recipes, options, group):
    """The data that were asked for, or CIFAR-10, or else the digits."""

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
        batches = {"batch_size": recipe.batch_size, "shard": (group.rank, group.size)}
        _, train, test = group.first_before_others(partial(dataloaders, **place, **given, **batches))
        return _Data(name, recipe, in_memory, (train, test))

    if options.dataset:
        return load(options.dataset)
    try:
        return load("cifar10")
    except DataError as error:
        print(f"CIFAR-10 is not to be had: {error}")
        print("Training on the bundled digits instead, with a recipe of their own; --dataset chooses another set.")
        return load("digits")
