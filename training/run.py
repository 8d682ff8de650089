"""What every training script does: build, count, print, load data, train, save, report.

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250))

is all that a script in models/ calls. The loop itself is trainer.py's.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn

from dataloaders import DataError, dataloaders, describe
from linearconv import LinearConv
from training import checkpoints, counting, distributed, report
from training.options import (
    Recipe,
    UsageError,
    apply_recipe,
    conv_factory,
    fail,
    parse_arguments,
    run_name,
)
from training.stopping import NotFinite, Stopped
from training.trainer import Trainer

__all__ = ["Recipe", "main"]


def main(networks, recipe, argv=None):
    """Run a training script from its command line to its report.

    Args:
        networks (dict[str, callable]): constructors (conv, in_channels, num_classes, width) by name, default first.
        recipe (Recipe): the architecture's recipe.
        argv (list[str], optional): arguments; those of the process where left out.

    Raises:
        SystemExit: with one line on stderr and code 2 for bad input or files that cannot be written, 3 for numbers that
            have gone wrong, 130 when interrupted, 143 when terminated.
    """
    options = parse_arguments(networks, recipe, argv)
    if int(os.environ.get("RANK", "0")):  # of several processes the first one speaks
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lasts
    try:
        with distributed.join(options) as group:
            _run(networks[options.network], recipe, options, group)
    except Stopped as stop:
        fail(stop, options.program)
        sys.exit(stop.code)
    except NotFinite as error:
        fail(error, options.program)
        sys.exit(3)
    except (UsageError, DataError) as error:
        sys.exit(fail(error, options.program))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(fail(f"{where}{error.strerror or error}", options.program))
    except KeyboardInterrupt:  # before training began
        fail("interrupted", options.program)
        sys.exit(130)


def _run(network, recipe, options, group):
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    input_size, classes = _image_shape(options)
    torch.manual_seed(options.seed)
    model = _build(network, conv_factory(options), input_size, classes, options.width)
    try:
        dense = _build(network, nn.Conv2d, input_size, classes, options.width)
        counts = report.count_against_dense(model, dense, input_size)
    except RuntimeError as error:
        size = "x".join(map(str, input_size))
        raise UsageError(f"{options.network} does not take {size} images: {error}") from None
    report.print_counts(options, counts, input_size, classes)
    record = report.start(options, counts, classes)
    if options.output and not options.resume:  # a folder that cannot be used is told before any waiting
        _open_folder(options, None, group)
    if options.count_only:
        if options.output and group.is_first:
            checkpoints.write_json(Path(options.output) / checkpoints.REPORT, record)
        return

    options.channels_last = options.channels_last and _channels_last_is_safe(model, options.device)
    dataset, options, loaders = _load_data(recipe, options, group)
    default = Path("ckpt") / Path(options.program).stem / run_name(options, dataset)
    folder = _open_folder(options, default, group)
    trainer = Trainer(model, loaders, options, folder, dataset, classes, group)
    if options.tensorboard and group.is_first:
        trainer.write_events_to(folder)
    if options.resume or trainer.was_started_again():
        trainer.resume()
    outcome = trainer.fit()
    record |= {"dataset": dataset, **trainer.recipe, **outcome}
    record["nonzero_parameters"] = counting.count_nonzero_parameters(trainer.model)
    if group.is_first:
        checkpoints.write_json(folder / checkpoints.REPORT, record)
        report.print_outcome(record, folder / checkpoints.REPORT)


def _open_folder(options, default, group):
    """The run's folder, found or made by the first process; one that torchrun starts again goes on in it."""

    def open_it():
        resume = options.resume or group.restarts > 0
        folder = checkpoints.open_folder(options.output, default, resume, must_exist=options.resume)
        if group.size > 1 and not options.output:
            (folder / checkpoints.LOG).touch()  # takes the default folder's number, should torchrun start it again
        return folder

    return group.of_first(open_it)


def _image_shape(options):
    """(channels, height, width) of an image and the number of classes, without reading an image."""
    dataset = options.dataset or "cifar10"  # left out, the data decides later; digits have CIFAR-10's shape
    if options.count_only and dataset == "imagefolder":
        channels, classes, size = 3, 10, options.image_size
    else:
        info = describe(dataset, options.data_root, options.image_size)
        channels, classes, size = info.in_channels, info.num_classes, info.image_size
    return (options.in_channels or channels, size, size), options.num_classes or classes


def _build(network, conv, input_size, classes, width):
    try:
        return network(conv=conv, in_channels=input_size[0], num_classes=classes, width=width)
    except ValueError as error:
        raise UsageError(f"the network cannot be built: {error}") from None


def _channels_last_is_safe(model, device):
    """False where channels_last would crash: torch 2.11 to 2.15 corrupt memory on a CPU in the weight gradient of a
    strided 1x1 convolution of fewer than 16 input channels, dense or LinearConv alike (thin ResNets have them)."""
    layers = (layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, LinearConv)))
    strided = (layer for layer in layers if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return torch.device(device).type != "cpu" or all(layer.in_channels >= 16 for layer in strided)


def _load_data(recipe, options, group):
    """Load what was asked for, or CIFAR-10, or else the digits; returns name, options with the recipe's, loaders."""

    def load(name):
        filled = apply_recipe(options, recipe.for_dataset(name))
        read = partial(
            dataloaders,
            name,
            options.data_root,
            batch_size=filled.batch_size,
            image_size=options.image_size,
            download=options.download,
            device=options.device,
            seed=options.seed,
            channels_last=options.channels_last,
            shard=(group.rank, group.size),
        )
        _, train, test = group.first_before_others(read)
        return name, filled, (train, test)

    if options.dataset:
        return load(options.dataset)
    try:
        return load("cifar10")
    except DataError as error:
        print(f"CIFAR-10 is not to be had: {error}")
        print("Training on the bundled digits instead, with a recipe of their own; --dataset chooses another set.")
        return load("digits")
