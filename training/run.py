"""A run from its command line to its report: build the network, count, load data, train, report.

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250))

is the only call of a script in models/.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from dataloaders import DataError, Loader, dataloaders, describe, kept_in_memory
from linearconv import LinearConv
from linearconv_convert.weights import copy_weights
from training import checkpoints, counting, report
from training.distributed import Group, join
from training.errors import EXPECTED, UsageError, report_failure
from training.networks import Network, Networks, Shape
from training.options import Options, make_parser, parse_arguments, run_name
from training.recipe import Recipe, TrainingSettings, recipe_for
from training.trainer import Trainer

Recipes = tuple[Recipe, Recipe | None]  # the architecture's recipe, and its recipe for the digits
Checkpoint = tuple[dict, Path]  # state and path


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
    options = parse_arguments(make_parser(networks, recipe, digits_recipe), argv)
    if int(os.environ.get("RANK", "0")):  # only rank 0 prints; all processes report errors
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lasts
    try:
        with join(options.device) as group:
            _run(options, (recipe, digits_recipe), group)
    except EXPECTED as error:
        sys.exit(report_failure(error, options.program))


def _run(options: Options, recipes: Recipes, group: Group) -> None:
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)
    resume = "auto" if group.restarts and options.resume == "never" else options.resume  # torchrun's restarts resume
    networks, recipe = options.networks, recipe_for(options, options.dataset, *recipes)
    input_size, num_classes = _image_shape(options)
    data = folder = checkpoint = None

    torch.manual_seed(options.seed)
    network = networks.build(options, recipe, input_size, num_classes, group)
    if networks.is_converted:
        images = None
        if not options.count_only:  # the conversion needs training images or the checkpoint
            data = load_data(options, recipes, group)
            folder = _open_folder(options, data.dataset, resume, group)
            checkpoint = _load_checkpoint(folder, resume, group)
            if checkpoint and checkpoint[0].get("network"):
                network.record = checkpoint[0]["network"]
            elif needed := networks.images_needed(options, recipe):
                images = training_images(data.loaders[0], needed)
        network = networks.convert(network, options, recipe, input_size, group, images)

    counts = _count(network, options, input_size)
    report.show_counts(networks.title(options), counts, input_size, num_classes)
    if options.output and folder is None:
        folder = _open_folder(options, None, resume, group)  # an unusable folder raises before the data are read
    if options.count_only:
        if folder and group.is_rank0:
            counted = report.make_report(options, counts, num_classes, group.device) | networks.settings(options)
            checkpoints.write_json(folder / checkpoints.REPORT, counted)
        return

    data = data or load_data(options, recipes, group)
    folder = folder or _open_folder(options, data.dataset, resume, group)
    checkpoint = checkpoint or _load_checkpoint(folder, resume, group)
    if group.is_rank0 and group.size > 1 and not options.output:
        (folder / checkpoints.LOG).touch()  # reserves the number of the default folder, in case torchrun restarts
    trainer = train(network, data, options, num_classes, folder, group, checkpoint)

    flipped = trainer.evaluate_flipped()  # called in all processes
    if group.is_rank0:
        counts["nonzero_parameters"] = counting.count_nonzero_parameters(trainer.model)
        result = report.make_report(options, counts, num_classes, group.device) | networks.settings(options)
        result |= {"dataset": data.dataset, "in_memory": data.in_memory}
        result |= vars(data.recipe) | trainer.progress.outcome() | flipped
        checkpoints.write_json(folder / checkpoints.REPORT, result)
        report.show_outcome(result, folder / checkpoints.REPORT)


# ---- build and count ------------------------------------------------------------------------------------------------


def _image_shape(options: Options) -> tuple[Shape, int]:
    """Return (channels, height, width) of an image and the number of classes, without reading an image."""
    dataset = options.dataset or "cifar10"  # digits, the fallback for CIFAR-10, have the same shape
    if options.count_only and dataset == "imagefolder":
        channels, classes, size = 3, 10, options.image_size
    else:
        info = describe(dataset, options.data_root, options.image_size)
        channels, classes, size = info.in_channels, info.num_classes, info.image_size
    return (options.in_channels or channels, size, size), options.num_classes or classes


def _count(network: Network, options: Options, input_size: Shape) -> dict[str, int]:
    """Return the counts of the network and of the dense network."""
    try:
        return report.count_against_dense(network.model, network.dense, input_size)
    except (RuntimeError, ValueError, AssertionError) as error:  # networks raise these for unsuitable images
        size = "x".join(map(str, input_size))
        raise UsageError(f"{options.network} does not take {size} images: {error}") from None


# ---- data and folder ------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """A data set and the recipe for it."""

    dataset: str
    recipe: Recipe
    in_memory: bool
    loaders: tuple[Loader, Loader]  # training and test


def load_data(options: Options, recipes: Recipes, group: Group) -> Data:
    """Return the data set of the options; by default CIFAR-10, or the digits if CIFAR-10 is not available."""
    if options.dataset:
        return _load(options.dataset, options, recipes, group)
    try:
        return _load("cifar10", options, recipes, group)
    except DataError as error:
        print(f"CIFAR-10 is not available: {error}")
        print("Training on the bundled digits instead, with a recipe of their own; --dataset chooses another set.")
        return _load("digits", options, recipes, group)


def _load(name: str, options: Options, recipes: Recipes, group: Group) -> Data:
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
    _, train, test = group.on_rank0_first(read)
    return Data(name, recipe, in_memory, (train, test))


def training_images(loader: Loader, count: int) -> list[Tensor]:
    """Return the first images of a training loader's next pass, in batches of 64; the loader's state is unchanged.

    Args:
        loader: loader of the training images.
        count: number of images; a loader with fewer images returns all of them.
    """
    state, images = loader.state_dict(), []
    for batch, _ in loader:
        images.append(batch)
        if sum(map(len, images)) >= count:
            break
    loader.load_state_dict(state)
    return list(torch.cat(images)[:count].split(64))


def _open_folder(options: Options, dataset: str | None, resume: str, group: Group) -> Path:
    """Return the output folder; the name of the default folder contains the data set."""
    default = None
    if not options.output:
        default = Path("ckpt") / Path(options.program).stem / run_name(options, dataset)
    return group.broadcast_from_rank0(partial(checkpoints.open_folder, options.output, default, resume))


def _load_checkpoint(folder: Path, resume: str, group: Group) -> Checkpoint | None:
    """Return the newest checkpoint of a run that is resumed, or None for a new run."""
    if resume != "always" and not group.broadcast_from_rank0(partial(checkpoints.holds_checkpoint, folder)):
        return None
    return group.broadcast_from_rank0(partial(checkpoints.load_newest, folder))


# ---- train ----------------------------------------------------------------------------------------------------------


def train(
    network: Network,
    data: Data,
    options: Options,
    num_classes: int,
    folder: Path,
    group: Group,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    """Train a network for all epochs, from a checkpoint if given, and return its trainer.

    With --dense-epochs a first trainer trains the dense network, and a second one the converted network.
    """
    recipe, is_safe = data.recipe, _channels_last_is_safe(network.model, group.device)
    channels_last = options.channels_last and is_safe
    for loader in data.loaders:
        loader.memory_format = torch.channels_last if channels_last else torch.contiguous_format
    settings = TrainingSettings(
        recipe=recipe,
        dataset=data.dataset,
        num_classes=num_classes,
        processes=group.size,
        in_memory=data.in_memory,
        of_network=options.networks.settings(options),
        **options.pick("network", "variant", "width", "seed", "amp", "validation"),
    )
    make_trainer = partial(
        Trainer,
        loaders=data.loaders,
        settings=settings,
        folder=folder,
        group=group,
        teacher=network.dense if recipe.distill else None,
        record=network.record,
        channels_last=channels_last,
        **options.pick("compile", "sync_batch_norm", "save_every", "tensorboard"),
    )
    if checkpoint is None and group.is_rank0 and (folder / checkpoints.LOG).exists():
        checkpoints.write_log(folder, [])  # left by a run that ended before its first checkpoint

    is_to_convert = any(isinstance(module, LinearConv) for module in network.model.modules())
    progress, dense_epochs = None, recipe.dense_epochs if is_to_convert else 0
    if dense_epochs and (checkpoint is None or not _is_after(checkpoint[0], dense_epochs)):
        warm_up = make_trainer(network.dense, last_epoch=min(dense_epochs, recipe.epochs))
        if checkpoint:
            warm_up.load_state(*checkpoint, options.may_change)
            checkpoint = None
        progress = warm_up.fit()
        if dense_epochs >= recipe.epochs:
            return warm_up
        copy_weights(warm_up.model, network.model.to(group.device))
    trainer = make_trainer(network.model, first_epoch=dense_epochs, progress=progress)
    if checkpoint:
        trainer.load_state(*checkpoint, options.may_change)
    trainer.fit()
    return trainer


def _is_after(state: dict, epoch: int) -> bool:
    """Return True if a checkpoint is past the end of an epoch."""
    return (state["epoch"], state["batch"]) > (epoch, 0)


def _channels_last_is_safe(model: nn.Module, device: torch.device) -> bool:
    """Return False if channels_last would crash.

    On a CPU, torch 2.11 to 2.15 corrupt memory in the weight gradient of a strided 1x1 convolution with fewer than 16
    input channels, whether dense or LinearConv. Thin ResNets have such layers.
    """
    layers = (layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, LinearConv)))
    strided = (layer for layer in layers if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return device.type != "cpu" or all(layer.in_channels >= 16 for layer in strided)
