"""One function for all data sets.

    info, train, test = dataloaders("cifar10", "dataset", batch_size=50)
    for images, labels in train: ...         # float32 (B, C, H, W), normalised; int64 (B,)

Each data set is an entry in `DATASETS`, which includes its augmentation; images/digits.py is an example of a `load`
function. Images are kept in memory as uint8. An imagefolder that would need more than half of the free memory is
streamed from disk instead, and RandomResizedCrop crops its training images. Data that cannot be used raise a
`DataError`: one line that names the file or folder and the remedy.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from images import digits
from images.archives import CIFAR10, CIFAR100, FASHION, published
from images.batches import BatchLoader
from images.info import DataError, DataSet, available_memory, channel_statistics, evenly_spaced
from images.loader import Loader
from images.stream import StreamLoader
from images.tree import class_names, decoded_bytes, list_tree, read_images, read_tree

DATASETS = {  # the CIFAR deviations are smaller than the actual ones, as in the published recipe
    "cifar10": DataSet(
        published("CIFAR10"), CIFAR10, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), crop=4, flip=True
    ),
    "cifar100": DataSet(
        published("CIFAR100"), CIFAR100, mean=(0.5071, 0.4866, 0.4409), std=(0.2009, 0.1984, 0.2023), crop=4, flip=True
    ),
    "svhn": DataSet(
        published("SVHN"), digits.CLASSES, mean=(0.4377, 0.4438, 0.4728), std=(0.1201, 0.1231, 0.1052), crop=4
    ),
    "mnist": DataSet(published("MNIST", padding=2), digits.CLASSES, mean=(0.1307,), std=(0.3015,), in_channels=1),
    "fashionmnist": DataSet(
        published("FashionMNIST", padding=2), FASHION, mean=(0.2860,), std=(0.3205,), in_channels=1, flip=True
    ),
    "digits": DataSet(digits.load, digits.CLASSES, mean=(0.3053,) * 3, std=(0.3237,) * 3, crop=4),
    "imagefolder": DataSet(load=None, flip=True),  # train/<class>/* and test/<class>/*; crop: image_size // 8
}
IN_MEMORY = ("auto", "yes", "no")
MEMORY_SHARE = 0.5  # of the free memory that a set may use; batches and the network need the rest
SAMPLE = 1024  # evenly spaced training images, to estimate mean and std of a streamed set


def describe(name: str, root: str | os.PathLike = "dataset", image_size: int = 32) -> DataSet:
    """Return the description of a data set without reading images. The classes of an imagefolder are its folders.

    Args:
        name, root, image_size: see `dataloaders`.

    Raises:
        DataError: for an unknown name, and for an imagefolder without classes.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}")
    info = DATASETS[name]
    if name != "imagefolder":
        return info
    if image_size < 1:
        raise DataError(f"images cannot be {image_size} pixels wide: choose an image size of 1 or more")
    classes = class_names(Path(root, "train").expanduser())
    return replace(info, classes=classes, image_size=image_size, crop=image_size // 8)


def kept_in_memory(
    name: str,
    root: str | os.PathLike = "dataset",
    *,
    in_memory: str = "auto",
    image_size: int = 32,
    device: str | torch.device = "cpu",
    copies: int = 1,
) -> bool:
    """Return True if `dataloaders` reads a data set into memory, False if it streams the data set from disk.

    Args:
        name, root, image_size, device: see `dataloaders`.
        in_memory: one of `IN_MEMORY`. `"auto"` streams an imagefolder if its decoded images would need more than half
            of the free memory. Other sets are always kept in memory.
        copies: number of processes on this machine that each keep all images.

    Raises:
        DataError: for `"no"` with a set that cannot be streamed, or for an imagefolder without the required folders.
    """
    if in_memory not in IN_MEMORY:
        raise ValueError(f"in_memory must be one of {', '.join(IN_MEMORY)}, not {in_memory!r}")
    if name != "imagefolder" and in_memory == "no":
        raise DataError(f"{name} is always kept in memory: only an imagefolder can be streamed")
    if name != "imagefolder" or in_memory != "auto":
        return in_memory != "no"
    free = available_memory() / copies  # images for a GPU are in the machine's memory first
    if torch.device(device).type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return decoded_bytes(list_tree(Path(root).expanduser()), image_size) <= MEMORY_SHARE * free


def dataloaders(
    name: str,
    root: str | os.PathLike = "dataset",
    *,
    batch_size: int = 50,
    image_size: int = 32,
    download: bool = True,
    device: str | torch.device = "cpu",
    seed: int = 0,
    validation: int = 0,
    flip: str = "random",
    shard: tuple[int, int] = (0, 1),
    in_memory: str = "auto",
    workers: int | None = None,
) -> tuple[DataSet, Loader, Loader]:
    """Read a data set into the memory of `device`, or prepare to stream it to `device`.

    Args:
        name: one of `DATASETS`.
        root: the folder with the data, or for the download; ignored for `digits`.
        image_size: height and width of the images of an `imagefolder`; ignored for other sets.
        download: download missing data. With False, archives in `root` are still unpacked.
        validation: number of training images, evenly spaced, to hold out and return as `test` instead of the test
            images, for choices that must not depend on the test images.
        flip: `"random"` or `"alternating"`, for sets whose images are flipped; see `Loader`.
        in_memory: see `kept_in_memory`.
        batch_size, seed, shard: see `Loader`.
        workers: see `StreamLoader`.

    Returns:
        `(info, train, test)`: `train` is shuffled and augmented as defined in `DATASETS`; `test` yields every image
        once, in order.

    Raises:
        DataError: if data are not available or damaged.
    """
    info, root = describe(name, root, image_size), Path(root).expanduser()
    kept = kept_in_memory(name, root, in_memory=in_memory, image_size=image_size, device=device)
    if not kept:
        train, test = list_tree(root)
    elif name == "imagefolder":
        train, test = read_tree(root, image_size)
    else:
        train, test = _load(name, root, download)
    if info.mean is None:
        some = train[0] if kept else read_images(train[0][evenly_spaced(len(train[0]), SAMPLE)], image_size)
        mean, std = channel_statistics(some)
        info = replace(info, mean=mean, std=std)
    if validation:
        train, test = _hold_out(train, validation)

    options = {"batch_size": batch_size, "shard": shard}
    augmentation = {"shuffle": True, "seed": seed, "flip": info.flip, "alternating": flip == "alternating"}
    (images, labels), (test_images, test_labels) = train, test  # paths of images in streamed sets
    labels, test_labels = labels.to(device), test_labels.to(device)
    if kept:
        images, test_images, loader = images.to(device), test_images.to(device), BatchLoader
        augmentation["padding"] = info.crop
    else:
        loader = StreamLoader
        augmentation["random_crop"] = True
        options |= {"size": info.image_size, "workers": workers}
    train = loader(images, labels, info.mean, info.std, **augmentation, **options)
    return info, train, loader(test_images, test_labels, info.mean, info.std, **options)


def _load(name, root, download):
    """Both splits of a registered data set, checked against its entry in `DATASETS`."""
    info = DATASETS[name]
    shape = (info.in_channels, info.image_size, info.image_size)
    splits = info.load(root, download)
    for images, labels in splits:
        types = images.dtype == torch.uint8 and labels.dtype == torch.int64
        if not types or images.shape[1:] != shape or labels.shape != images.shape[:1]:
            found = f"{images.dtype} {tuple(images.shape)} with labels {labels.dtype} {tuple(labels.shape)}"
            expected = f"torch.uint8 (N, {', '.join(map(str, shape))}) with labels torch.int64 (N,)"
            raise DataError(f"the images of {name} are {found}: dataloaders.DATASETS says {expected}")
        if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < info.num_classes:
            raise DataError(f"the labels of {name} are not 0 to {info.num_classes - 1}, as dataloaders.DATASETS says")
    return splits


def _hold_out(split, count):
    """The split without `count` evenly spaced images, and the split of these images."""
    total = len(split[0])
    if count >= total:
        raise DataError(f"{count} images for validation leave none of {total} to train on: hold out fewer")
    held = evenly_spaced(total, count)
    rest = np.delete(np.arange(total), held)
    return [part[rest] for part in split], [part[held] for part in split]
