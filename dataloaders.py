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

The first five come through torchvision: as they lie in `root`, else from their archives there, else from the
network. MNIST and Fashion-MNIST are zero-padded from 28x28. `digits` is bundled with scikit-learn and needs
no file. Every image is decoded once and kept in memory as uint8. Whatever is wrong with the data is a
`DataError`: one line that names the file or folder and says what to do.
"""

from __future__ import annotations

import os
import socket
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from images.batches import BatchLoader
from images.tree import DataError, Split, class_folders, measure, one_line, read_tree, spread

__all__ = ["DATASETS", "BatchLoader", "DataError", "DatasetInfo", "dataloaders", "describe"]


@dataclass(frozen=True)
class DatasetInfo:
    """What a network has to know of a data set, whose images are `(in_channels, image_size, image_size)`.

    mean, std: per channel, of values scaled to 0 .. 1. None for an imagefolder that has not been read.
    """

    name: str
    classes: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def num_classes(self) -> int:
        return len(self.classes)


_DIGITS = tuple("0123456789")
_CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm""".split()
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

CROPPED = {"cifar10", "cifar100", "svhn", "digits", "imagefolder"}
FLIPPED = {"cifar10", "cifar100", "fashionmnist", "imagefolder"}

# torchvision's name, training images, test images
_PUBLISHED = {
    "cifar10": ("CIFAR10", 50_000, 10_000),
    "cifar100": ("CIFAR100", 50_000, 10_000),
    "svhn": ("SVHN", 73_257, 26_032),
    "mnist": ("MNIST", 60_000, 10_000),
    "fashionmnist": ("FashionMNIST", 60_000, 10_000),
}
CONNECT_TIMEOUT = 10.0  # seconds that a server has to answer


def describe(name: str, root: str | os.PathLike = "dataset", image_size: int = 32) -> DatasetInfo:
    """Classes, channels and size of a data set, without reading an image.

    name: one of `DATASETS`.
    root, image_size: matter to `imagefolder` alone, whose classes are the folders in `root/train`.
    Raises `DataError` for an unknown name, and for an imagefolder without classes.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}")
    if name != "imagefolder":
        return DatasetInfo(name, *_INFO[name])
    if image_size < 1:
        raise DataError(f"images cannot be {image_size} pixels wide: choose an image size of 1 or more")
    classes = class_folders(Path(os.path.expanduser(root), "train"))
    return DatasetInfo(name, classes, 3, image_size, mean=None, std=None)


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
    shard: tuple[int, int] = (0, 1),
) -> tuple[DatasetInfo, BatchLoader, BatchLoader]:
    """Reads a data set into the memory of `device`: `(info, train, test)`.

    `train` is shuffled and augmented as the table above says; `test` gives every image once, in order.

    name:          one of `DATASETS`.
    root:          the folder that holds the data or receives the download. `digits` does without.
    batch_size:    images in a batch.
    image_size:    height and width for `imagefolder`; the other sets are 32x32.
    download:      False: no network. An archive that lies in `root` is unpacked all the same.
    device:        where the images are kept and the batches are made.
    seed:          of the order and the augmentation. The split of `digits` does not depend on it.
    channels_last: batches in `torch.channels_last` memory format.
    limit:         use this many images of each split, evenly spread, for a quick try.
    shard:         (rank, size) of this process among those that share every batch, see `BatchLoader`.
    Raises `DataError` for data that cannot be had or is damaged.
    """
    info, root = describe(name, root, image_size), Path(os.path.expanduser(root))
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no images: choose 1 or more")
    if name == "imagefolder":
        train, test = read_tree(root, image_size, limit)
        mean, std = measure(train[0])
        info = replace(info, mean=mean, std=std)
    else:
        train, test = _digits() if name == "digits" else _published(info, root, download)
        if limit is not None:
            train, test = ([part[spread(len(part), limit)] for part in split] for split in (train, test))

    def loader(split: Split, **training) -> BatchLoader:
        images, labels = (part.to(device) for part in split)
        options = {"batch_size": batch_size, "channels_last": channels_last, "shard": shard, **training}
        return BatchLoader(images, labels, info.mean, info.std, **options)

    padding = info.image_size // 8 if name in CROPPED else 0
    return info, loader(train, shuffle=True, padding=padding, flip=name in FLIPPED, seed=seed), loader(test)


# ---- digits ------------------------------------------------------------------------------------------------


def _digits() -> tuple[Split, Split]:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels, as 3x32x32 with 256.

    The grey value is repeated in three channels, so that the network trained on it is the very one, parameter
    by parameter, whose counts the paper gives for CIFAR-10. The split is stratified and always the same.
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
    split = {"train_size": 1438, "test_size": 359, "random_state": 0}
    parts = train_test_split(range(len(labels)), stratify=digits.target, **split)
    train, test = ((images[part], labels[part]) for part in parts)
    return train, test


# ---- the sets that torchvision reads -----------------------------------------------------------------------


class _Archive(NamedTuple):
    """A file of a published set as it is downloaded. All paths are relative to the set's folder."""

    file: str
    md5: str
    url: str
    contents: list[tuple[str, str | int]]  # the files in it, each with its MD5 or its size in bytes


def _published(info: DatasetInfo, root: Path, download: bool) -> tuple[Split, Split]:
    """Reads a set as it lies in `root`, else from its archives there, else from the network."""
    try:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity, download_url, extract_archive
    except Exception as error:  # a torchvision that was built for another torch fails in many ways
        raise DataError(
            f"{info.name} is read with torchvision, which cannot be imported ({one_line(error)}): install "
            f"the torchvision that belongs to torch {torch.__version__}, or use digits or imagefolder"
        ) from error
    dataset = getattr(datasets, _PUBLISHED[info.name][0])
    folder, archives = _archives(info.name, dataset, root)

    def intact(file: str, mark: str | int) -> bool:
        path = folder / file
        try:
            if isinstance(mark, int):
                return os.path.isfile(path) and os.path.getsize(path) == mark
            return check_integrity(path, mark)
        except OSError:  # it may not be read
            return False

    def wanting() -> list[_Archive]:
        return [archive for archive in archives if not all(intact(*content) for content in archive.contents)]

    def unpack() -> None:
        for archive in wanting():
            if intact(archive.file, archive.md5):
                extract_archive(str(folder / archive.file), str(folder))

    failure, timeout = "", socket.getdefaulttimeout()
    try:
        unpack()
        if download and (missing := wanting()):
            _make_writable(folder)
            socket.setdefaulttimeout(CONNECT_TIMEOUT)
            for archive in missing:
                download_url(archive.url, str(folder), archive.file, archive.md5)
            unpack()
    except DataError:
        raise
    except Exception as error:  # network, disk or permissions
        failure = f" ({one_line(error)})"
    finally:
        socket.setdefaulttimeout(timeout)

    if missing := wanting():
        bring = [archive for archive in missing if not intact(archive.file, archive.md5)]
        damaged = [archive.file for archive in bring if os.path.exists(folder / archive.file)]
        absent = [file for file, mark in missing[0].contents if not intact(file, mark)]
        faulty = folder / (damaged or absent)[0]
        readable = "damaged" if os.access(faulty, os.R_OK) else "not readable"
        state = readable if os.path.exists(faulty) else "missing"
        files = ", ".join(f"{archive.file} (MD5 {archive.md5}, from {archive.url})" for archive in bring)
        cure = f"bring {files} to the folder {folder}" if bring else f"unpack {missing[0].file} there by hand"
        if state == "damaged":
            cure += "; a set that was rebuilt can be read as an imagefolder"
        doing = "downloaded" if download else "read"
        raise DataError(f"{info.name} cannot be {doing}{failure}: {faulty} is {state}; {cure}")
    try:
        return _read(info, dataset, root)
    except Exception as error:  # whatever torchvision, pickle, struct or scipy make of damaged files
        raise DataError(
            f"{info.name} in {folder} is damaged ({one_line(error)}): remove its files and start again"
        ) from error


def _archives(name: str, dataset: type, root: Path) -> tuple[Path, list[_Archive]]:
    """A set's folder and archives, from what torchvision knows of them."""
    if name == "svhn":
        files = map(dataset.split_list.get, ("train", "test"))
        return root, [_Archive(file, md5, url, [(file, md5)]) for url, file, md5 in files]
    if name in ("cifar10", "cifar100"):
        meta = dataset.meta["filename"], dataset.meta["md5"]
        files = *dataset.train_list, *dataset.test_list, meta
        contents = [(f"{dataset.base_folder}/{file}", md5) for file, md5 in files]
        return root, [_Archive(dataset.filename, dataset.tgz_md5, dataset.url, contents)]
    # torchvision takes any MNIST files that exist. Their sizes betray an unpacking that was cut short.
    _, train, test = _PUBLISHED[name]
    sizes = 16 + 28 * 28 * train, 8 + train, 16 + 28 * 28 * test, 8 + test
    return root / dataset.__name__ / "raw", [
        _Archive(file, md5, dataset.mirrors[0] + file, [(file.removesuffix(".gz"), size)])
        for (file, md5), size in zip(dataset.resources, sizes, strict=True)
    ]


def _read(info: DatasetInfo, dataset: type, root: Path) -> tuple[Split, Split]:
    """Both splits of a set that lies unpacked in `root`; any exception if they are not as published."""
    splits = []
    for split, count in zip(("train", "test"), _PUBLISHED[info.name][1:], strict=True):
        which = {"split": split} if info.name == "svhn" else {"train": split == "train"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about the age of the CIFAR pickles
            data = dataset(root, **which)
        images = torch.as_tensor(data.data)
        labels = torch.as_tensor(data.labels if info.name == "svhn" else data.targets, dtype=torch.int64)
        if info.in_channels == 1:
            images = F.pad(images.unsqueeze(1), (2, 2, 2, 2))  # (N, 28, 28) to (N, 1, 32, 32)
        elif info.name != "svhn":
            images = images.permute(0, 3, 1, 2)  # (N, 32, 32, 3) to (N, 3, 32, 32)

        shape = count, info.in_channels, info.image_size, info.image_size
        if images.dtype != torch.uint8 or images.shape != shape:
            raise ValueError(f"{split} images are {images.dtype} {tuple(images.shape)}, not uint8 {shape}")
        if labels.shape != (count,):
            raise ValueError(f"{tuple(labels.shape)} labels for {count} {split} images")
        if labels.unique().tolist() != list(range(info.num_classes)):
            raise ValueError(f"{split} labels are not 0 .. {info.num_classes - 1}, each at least once")
        splits.append((images.contiguous(), labels))
    return splits[0], splits[1]


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise DataError(f"cannot write to {folder} ({error.strerror}): choose another data folder") from error
