"""A run from its command line to its report: build the network, count, load data, train, report.

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250))

is the only call of a script in models/.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn

from dataloaders import DataError, DataSet, Loader, dataloaders, describe, kept_in_memory
from linearconv_convert.weights import copy_weights
from training import checkpoints, counting, report
from training.distributed import Group, join
from training.errors import EXPECTED, out_of_memory, prepare_output, report_failure
from training.memory import keep_freed_memory
from training.networks import Networks, Shape
from training.options import Options, make_parser, parse_arguments, run_name
from training.recipe import Recipe, recipe_for
from training.trainer import Trainer

Recipes = tuple[Recipe, Recipe | None]  # the architecture's recipe, and its recipe for the digits


def main(
    networks: dict[str, Callable[..., nn.Module]] | Networks,
    recipe: Recipe,
    digits_recipe: Recipe | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a training script from its command line to its report.

    Args:
        networks: constructors (conv, in_channels, num_classes, width) by name, the default first; or an object with the
            interface of :class:`training.networks.Networks`.
        recipe: recipe of the architecture.
        digits_recipe: recipe for the 1,438 bundled digits, for which the published recipe is unsuitable.
        argv: arguments; default: the arguments of the process.

    Raises:
        SystemExit: with one line on stderr and code 2 for bad input or files that cannot be written, 3 for infinite or
            undefined numbers, 130 when interrupted, 143 when terminated.
    """
    prepare_output()
    parser = make_parser(networks, recipe, digits_recipe)
    try:
        options = parse_arguments(parser, argv)
        with join(options.device) as group, ExitStack() as stack:
            if not group.is_rank0:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lasts
            _run(options, (recipe, digits_recipe), group, stack)
    except (*EXPECTED, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        sys.exit(report_failure(error, parser.prog))


def _run(options: Options, recipes: Recipes, group: Group, stack: ExitStack) -> None:
    keep_freed_memory()
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)
    networks, recipe = options.networks, recipe_for(options, options.dataset, *recipes)
    input_size, num_classes = _image_shape(options)
    # A folder that cannot be used raises before the data are read.
    folder = _open_folder(options, None, group, stack) if options.output else None
    torch.manual_seed(options.seed)
    network = networks.build(options, recipe, input_size, num_classes)
    loaded = loader = None
    if networks.is_converted:
        if not options.count_only:  # the conversion needs images, or the record in a checkpoint
            loaded = data, folder, checkpoint = _load(options, recipes, folder, group, stack)
            loader = data.loaders[0]
            if checkpoint:
                network.record = checkpoint[0].get("network", network.record)
        network = networks.convert(network, options, recipe, group, loader)

    counts = report.count_against_dense(network.model, network.dense, input_size)
    report.show_counts(networks.title(options), counts, input_size, num_classes)
    result = report.make_report(options, counts, num_classes, group.device) | networks.settings(options)
    if options.count_only:
        if folder and group.is_rank0:
            checkpoints.write_json(folder / checkpoints.REPORT, result)
        return

    data, folder, checkpoint = loaded or _load(options, recipes, folder, group, stack)
    if group.is_rank0 and group.size > 1 and not options.output:
        (folder / checkpoints.LOG).touch()  # reserves the number of the default folder, in case torchrun restarts
    print(f"{data.recipe.epochs} epochs of {len(data.loaders[0])} steps; output folder: {folder}")
    settings = _settings(options, data, num_classes, group)
    trainer = _train(network, data, options, settings, folder, group, checkpoint)

    if group.is_rank0:
        result["nonzero_parameters"] = counting.count_nonzero_parameters(trainer.model)
        result |= settings | vars(data.recipe)
        result |= trainer.progress.outcome()
        checkpoints.write_json(folder / checkpoints.REPORT, result)
        report.show_outcome(result, folder / checkpoints.REPORT)


def _image_shape(options: Options) -> tuple[Shape, int]:
    """Return (channels, height, width) of an image and the number of classes, without reading an image."""
    dataset = options.dataset or "cifar10"  # digits, the fallback for CIFAR-10, have the same shape
    if options.count_only and dataset == "imagefolder":
        channels, classes, size = 3, 10, options.image_size
    else:
        info = describe(dataset, options.data_root, options.image_size)
        channels, classes, size = info.in_channels, info.num_classes, info.image_size
    return (options.in_channels or channels, size, size), options.num_classes or classes


# ---- data and folder ------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """A data set and the recipe for it."""

    dataset: str
    info: DataSet
    recipe: Recipe
    in_memory: bool
    loaders: tuple[Loader, Loader]  # training and test


def _settings(options, data, num_classes, group):
    """Return all settings that decide the result: a run is resumed only from a checkpoint with equal settings."""
    settings = data.recipe.settings() | asdict(options.variant)
    settings.pop("compute", None)  # equal results to rounding
    settings |= options.pick("network", "width", "seed", "amp", "validation")
    settings |= {"dataset": data.dataset, "num_classes": num_classes, "processes": group.size}
    settings |= {"in_memory": data.in_memory, "classes": data.info.classes, "image_size": data.info.image_size}
    settings["num_images"] = tuple(loader.num_images for loader in data.loaders)  # training and test
    return settings | options.networks.settings(options)


def _load(options, recipes, folder, group, stack):
    """Return the data, the output folder, and the checkpoint (state, path) of a run that is resumed, or None."""
    try:
        data = _load_data(options.dataset or "cifar10", options, recipes, group)
    except DataError as error:
        if options.dataset:
            raise
        print(error)
        print("Training on the bundled digits instead, with a recipe of their own; --dataset chooses another set.")
        data = _load_data("digits", options, recipes, group)
    folder = folder or _open_folder(options, data.dataset, group, stack)

    def newest():
        return checkpoints.load_newest(folder) if checkpoints.holds_checkpoint(folder) else None

    return data, folder, group.broadcast_from_rank0(newest)


def _load_data(name, options, recipes, group):
    recipe = recipe_for(options, name, *recipes)
    place = {"name": name, "root": options.data_root, "device": group.device, "image_size": options.image_size}
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
    # Rank 0 decides for all processes, because the free memory shrinks while they read images.
    ask = partial(kept_in_memory, **place, in_memory=options.in_memory, copies=copies)
    in_memory = group.broadcast_from_rank0(ask)
    if not in_memory:
        print("The images are streamed from disk, and cropped at random sizes; --in-memory chooses.")
    read = partial(
        dataloaders,
        **place,
        **options.pick("download", "seed", "validation", "workers"),
        in_memory="yes" if in_memory else "no",
        flip=recipe.flip,
        batch_size=recipe.batch_size,
        shard=(group.rank, group.size),
    )
    info, *loaders = group.on_rank0_first(read)
    return Data(name, info, recipe, in_memory, tuple(loaders))


def _open_folder(options, dataset, group, stack):
    """Return the output folder, locked by rank 0; the name of the default folder contains the data set."""
    resume = "auto" if group.restarts and options.resume == "never" else options.resume  # torchrun's restarts resume
    folder = Path(options.output or Path("ckpt") / Path(options.program).stem / run_name(options, dataset))
    opened = checkpoints.open_folder(folder, resume, numbered=not options.output)
    return group.broadcast_from_rank0(lambda: stack.enter_context(opened))


# ---- train ----------------------------------------------------------------------------------------------------------


def _train(network, data, options, settings, folder, group, checkpoint):
    """Train a network for all epochs, from a checkpoint (state, path) if given, and return its trainer.

    With --dense-epochs a first trainer trains the dense network, and a second one the converted network.
    """
    recipe = data.recipe
    make_trainer = partial(
        Trainer,
        loaders=data.loaders,
        recipe=recipe,
        settings=settings,
        folder=folder,
        group=group,
        teacher=network.dense if recipe.distill else None,
        record=network.record,
        **options.pick("channels_last", "compile", "sync_batch_norm", "save_every"),
    )
    progress, dense_epochs = None, recipe.dense_epochs
    is_converted = checkpoint and (checkpoint[0]["epoch"], checkpoint[0]["batch"]) > (dense_epochs, 0)
    if dense_epochs and not is_converted:
        warm_up = make_trainer(network.dense, last_epoch=dense_epochs)
        if checkpoint:
            warm_up.load_state(*checkpoint, options.may_change)
            checkpoint = None
        progress = warm_up.fit()
        copy_weights(warm_up.model, network.model.to(group.device))
    trainer = make_trainer(network.model, first_epoch=dense_epochs, progress=progress)
    if checkpoint:
        trainer.load_state(*checkpoint, options.may_change)
    trainer.fit()
    return trainer
