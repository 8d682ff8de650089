"""Every data set behind one function.

    info, train, test = dataloaders("cifar10", "dataset", batch_size=50)
    for images, labels in train: ...         # float32 (B, C, H, W), normalised; int64 (B,)

| name           | images, train + test        | training augmentation           | mean and std from   |
| -------------- | --------------------------- | ------------------------------- | ------------------- |
| `cifar10`      | 50,000 + 10,000, 3x32x32    | crop with zero padding 4, flip  | the published code  |
| `cifar100`     | 50,000 + 10,000, 3x32x32    | crop with zero padding 4, flip  | the published code  |
| `svhn`         | 73,257 + 26,032, 3x32x32    | crop with zero padding 4        | the published code  |
| `mnist`        | 60,000 + 10,000, 1x32x32    | none                            | the published code  |
| `fashionmnist` | 60,000 + 10,000, 1x32x32    | flip                            | the published code  |
| `digits`       | 1,438 + 359, 3x32x32        | crop with zero padding 4        | the training images |
| `imagefolder`  | `root/{train,test}/<class>` | crop with padding size/8, flip  | the training images |
| - streamed     | the same                    | RandomResizedCrop, flip         | 1,024 of them       |

The first five come through torchvision: as they lie in `root`, else from their archives there, else from the network.
MNIST and Fashion-MNIST are zero-padded from 28x28. `digits` is bundled with scikit-learn and needs no file. Every image
is decoded once and kept in memory as uint8; an imagefolder that would take more than half of the free memory is
streamed instead. Whatever is wrong with the data is a `DataError`: one line that names the file or folder and says what
to do.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from images.archives import read_published
from images.batches import BatchLoader
from images.info import DataError, DatasetInfo, channel_statistics, evenly_spaced, fits, one_line
from images.loader import Loader
from images.stream import StreamLoader
from images.tree import class_names, decoded_bytes, list_tree, read_images, read_tree

__all__ = [
    "DATASETS",
    "IN_MEMORY",
    "BatchLoader",
    "DataError",
    "DatasetInfo",
    "Loader",
    "StreamLoader",
    "dataloaders",
    "describe",
    "kept_in_memory",
]

_DIGITS = tuple("0123456789")
_CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
_FASHION = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))

# The CIFAR deviations are smaller than the data's. They are the published recipe's, and kept as part of it.
_INFO = {
    "cifar10": (_CIFAR10, 3, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": (_CIFAR100, 3, 32, (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)),
    "svhn": (_DIGITS, 3, 32, (0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)),
    "mnist": (_DIGITS, 1, 32, (0.1307,), (0.3015,)),
    "fashionmnist": (_FASHION, 1, 32, (0.2860,), (0.3205,)),
    "digits": (_DIGITS, 3, 32, (0.3053,) * 3, (0.3237,) * 3),
}
DATASETS = (*_INFO, "imagefolder")
IN_MEMORY = ("auto", "yes", "no")
SAMPLE = 1024  # training images, evenly spaced, from which mean and std of a streamed set are estimated

CROPPED = {"cifar10", "cifar100", "svhn", "digits", "imagefolder"}
FLIPPED = {"cifar10", "cifar100", "fashionmnist", "imagefolder"}


def describe(name: str, root: str | os.PathLike = "dataset", image_size: int = 32) -> DatasetInfo:
    """Return classes, channels and size of a data set, without reading an image.

    Args:
        name: one of `DATASETS`.
        root: of an `imagefolder`, whose classes are the folders in `root/train`. Matters to no other set.
        image_size: height and width of the images of an `imagefolder`. Matters to no other set.

    Raises:
        DataError: for an unknown name, and for an imagefolder without classes.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}")
    if name != "imagefolder":
        return DatasetInfo(name, *_INFO[name])
    if image_size < 1:
        raise DataError(f"images cannot be {image_size} pixels wide: choose an image size of 1 or more")
    classes = class_names(Path(os.path.expanduser(root), "train"))
    return DatasetInfo(name, classes, 3, image_size, mean=None, std=None)


def kept_in_memory(
    name: str,
    root: str | os.PathLike = "dataset",
    *,
    in_memory: str = "auto",
    image_size: int = 32,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    copies: int = 1,
) -> bool:
    """Return True where `dataloaders` reads a data set into memory, False where it streams it.

    Args:
        name, root, image_size, limit, device: of `dataloaders`.
        in_memory: one of `IN_MEMORY`. "auto": an imagefolder is streamed if decoded it would take more than half of the
            free memory; other sets never are.
        copies: processes on this machine that each keep all images.

    Raises:
        DataError: for a set that cannot be streamed and is to be, and for folders that are not as they should be.
        ValueError: for another word than those of `IN_MEMORY`.
    """
    if in_memory not in IN_MEMORY:
        raise ValueError(f"in_memory must be one of {', '.join(IN_MEMORY)}, not {in_memory!r}")
    if name != "imagefolder":
        if in_memory == "no":
            raise DataError(f"{name} is always kept in memory: only an imagefolder can be streamed")
        return True
    if in_memory != "auto":
        return in_memory == "yes"
    splits = list_tree(Path(os.path.expanduser(root)), limit)
    return fits(decoded_bytes(splits, image_size), torch.device(device), copies)


def dataloaders(
    name: str,
    root: str | os.PathLike = "dataset",
    *,
    batch_size: int = 50,
    image_size: int = 32,
    download: bool = True,
    device: str | torch.device = "cpu",
    seed: int = 0,
    channels_last: bool = False,
    limit: int | None = None,
    validation: int = 0,
    flip: str = "random",
    shard: tuple[int, int] = (0, 1),
    in_memory: str = "auto",
    workers: int | None = None,
) -> tuple[DatasetInfo, Loader, Loader]:
    """Read a data set into the memory of `device`, or prepare to stream it there.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the data or receives the download. `digits` does without.
        batch_size: images in a batch.
        image_size: height and width for `imagefolder`; the other sets are 32x32.
        download: False: no network. An archive that lies in `root` is unpacked all the same.
        device: where the images are kept and the batches are made.
        seed: of the order and the augmentation. The split of `digits` does not depend on it.
        channels_last: batches in `torch.channels_last` memory format.
        limit: use this many images of each split, evenly spaced, for a quick try.
        validation: hold out this many of the training images, evenly spaced, and give them as `test`; the test images
            are not looked at. For choices that are not to be made on these.
        flip: `"random"` or `"alternating"`, see `Loader`, where images are flipped.
        shard: (rank, size) of this process among those that share every batch, see `Loader`.
        in_memory: `"auto"`, `"yes"` or `"no"`, see `kept_in_memory`.
        workers: processes that decode a streamed set, see `StreamLoader`.

    Returns:
        `(info, train, test)`: `train` is shuffled and augmented as the table above says; `test` gives every image
        once, in order.

    Raises:
        DataError: for data that cannot be had or is damaged.
    """
    info, root = describe(name, root, image_size), Path(os.path.expanduser(root))
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no images: choose 1 or more")
    kept = kept_in_memory(name, root, in_memory=in_memory, image_size=image_size, limit=limit, device=device)
    if not kept:
        train, test = list_tree(root, limit)
        sample = train[0][evenly_spaced(len(train[0]), SAMPLE).numpy()]
        mean, std = channel_statistics(read_images(sample, image_size))
        info = replace(info, mean=mean, std=std)
    elif name == "imagefolder":
        train, test = read_tree(root, image_size, limit)
        mean, std = channel_statistics(train[0])
        info = replace(info, mean=mean, std=std)
    else:
        train, test = _digits() if name == "digits" else read_published(info, root, download)
        if limit is not None:
            train, test = ([part[evenly_spaced(len(part), limit)] for part in split] for split in (train, test))
    if validation:
        train, test = _hold_out(train, validation)

    norm, options = (info.mean, info.std), {"batch_size": batch_size, "channels_last": channels_last, "shard": shard}
    augmentation = {"shuffle": True, "seed": seed, "flip": name in FLIPPED, "alternating": flip == "alternating"}
    if kept:
        train, test = ([part.to(device) for part in split] for split in (train, test))
        augmentation["padding"] = info.image_size // 8 if name in CROPPED else 0
        return info, BatchLoader(*train, *norm, **augmentation, **options), BatchLoader(*test, *norm, **options)
    train, test = ((places, labels.to(device)) for places, labels in (train, test))
    options |= {"size": info.image_size, "workers": workers}
    train = StreamLoader(*train, *norm, random_crop=True, **augmentation, **options)
    return info, train, StreamLoader(*test, *norm, **options)


def _hold_out(split, count):
    """The split without `count` evenly spaced images, and these."""
    total = len(split[0])
    if count >= total:
        raise DataError(f"{count} images for validation leave none of {total} to train on: hold out fewer")
    held = evenly_spaced(total, count).numpy()  # places of images are a numpy array
    rest = np.delete(np.arange(total), held)
    return [part[rest] for part in split], [part[held] for part in split]


def _digits():
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels, as 3x32x32 with 256.

    In three channels, so that the network is the very one whose counts the paper gives for CIFAR-10. The split is
    stratified and always the same.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except Exception as error:
        raise DataError(f"digits needs scikit-learn ({one_line(error)}): pip install scikit-learn") from error
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) * (255 / 16)  # (N, 1, 8, 8)
    images = F.interpolate(images, size=(32, 32), mode="bilinear").round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(1797), train_size=1438, random_state=0, stratify=digits.target)
    return (images[train], labels[train]), (images[test], labels[test])
