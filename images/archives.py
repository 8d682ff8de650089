"""The published sets that torchvision reads: as they lie in a folder, else from their archives, else from the network.

    train, test = read_published(info, Path("dataset"))      # each (images uint8 (N, C, H, W), labels int64 (N,))

Which files a set has, with their MD5s and addresses, is torchvision's knowledge. A download gets its name only when
its MD5 is right, so an archive is there whole or not at all.
"""

import os
import shutil
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from images.info import DataError, DatasetInfo, Split, no_torchvision, one_line

# torchvision's name, training images, test images
PUBLISHED = {
    "cifar10": ("CIFAR10", 50_000, 10_000),
    "cifar100": ("CIFAR100", 50_000, 10_000),
    "svhn": ("SVHN", 73_257, 26_032),
    "mnist": ("MNIST", 60_000, 10_000),
    "fashionmnist": ("FashionMNIST", 60_000, 10_000),
}


class Archive(NamedTuple):
    """A file of a published set as it is downloaded."""

    path: Path  # where it lies, or is to lie; its folder is the one it is unpacked into
    md5: str
    url: str


def read_published(info: DatasetInfo, root: Path, download: bool = True) -> tuple[Split, Split]:
    """Read the training and the test images of a published set.

    Args:
        info: of a set in `PUBLISHED`.
        root: the folder that holds the set or its archives, or receives the download.
        download: False: no network.

    Returns:
        `(images, labels)` of both splits: uint8 (N, C, 32, 32) and int64 (N,).

    Raises:
        DataError: without a torchvision, for files that are missing and cannot be had, and for damaged ones.
    """
    try:
        from torchvision import datasets
    except Exception as error:
        raise no_torchvision(f"{info.name} is read", error, "digits or imagefolder") from error
    dataset = getattr(datasets, PUBLISHED[info.name][0])
    with suppress(Exception):  # whatever torchvision, pickle, struct or scipy make of missing and damaged files
        return _read_splits(info, dataset, root)
    archives = _archives(info.name, dataset, root)
    try:
        _unpack(archives, download)
        return _read_splits(info, dataset, root)
    except Exception as error:  # of network and disk too
        where, reason = f"{info.name} in {archives[0].path.parent}", one_line(error)
        absent = ", ".join(
            f"{path} (MD5 {md5}, from {url})" for path, md5, url in archives if not _is_intact(path, md5)
        )
        cure = f"bring what is missing or damaged: {absent}" if absent else "remove its files and start again"
        raise DataError(f"{where} cannot be read ({reason}): {cure}") from error


def _archives(name, dataset, root):
    """A set's archives, from what torchvision knows of them."""
    if name == "svhn":
        files = map(dataset.split_list.get, ("train", "test"))
        return [Archive(root / file, md5, url) for url, file, md5 in files]
    if name in ("cifar10", "cifar100"):
        return [Archive(root / dataset.filename, dataset.tgz_md5, dataset.url)]
    folder = root / dataset.__name__ / "raw"
    return [Archive(folder / file, md5, dataset.mirrors[0] + file) for file, md5 in dataset.resources]


def _is_intact(path, md5):
    from torchvision.datasets.utils import check_integrity

    with suppress(OSError):  # it may not be read
        return check_integrity(path, md5)
    return False


def _unpack(archives, download):
    """Unpack the archives that are there; with `download`, all of them."""
    from torchvision.datasets.utils import extract_archive

    for archive in archives:
        if download and not _is_intact(archive.path, archive.md5):
            _download(archive)
        if archive.path.suffix == ".gz" and _is_intact(archive.path, archive.md5):
            extract_archive(str(archive.path), str(archive.path.parent))


def _download(archive):
    """Download an archive, into a folder that is made where there is none; OSError where anything is amiss."""
    part = archive.path.with_name(f"{archive.path.name}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    request = urllib.request.Request(archive.url, headers={"User-Agent": "linearconv"})
    try:
        with (
            open(part, "wb") as file,
            urllib.request.urlopen(request, timeout=10) as page,  # seconds that a server has to answer
            tqdm.wrapattr(file, "write", total=page.length, desc=archive.path.name, disable=None) as counted,
        ):
            shutil.copyfileobj(page, counted)
        if not _is_intact(part, archive.md5):
            raise OSError(f"what {archive.url} sends is damaged")
        part.replace(archive.path)
    finally:
        part.unlink(missing_ok=True)


def _read_splits(info, dataset, root):
    """Both splits of a set that lies unpacked in `root`; any exception if they are not as published."""
    splits = []
    for split, count in zip(("train", "test"), PUBLISHED[info.name][1:], strict=True):
        which = {"split": split} if info.name == "svhn" else {"train": split == "train"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about the age of the CIFAR pickles
            data = dataset(root, **which)
        images = torch.as_tensor(data.data)
        labels = torch.as_tensor(data.labels if info.name == "svhn" else data.targets, dtype=torch.int64)
        if images.ndim == 3:
            images = F.pad(images.unsqueeze(1), (2, 2, 2, 2))  # (N, 28, 28) to (N, 1, 32, 32)
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)  # (N, 32, 32, 3) to (N, 3, 32, 32)

        found = images.dtype, *images.shape, *labels.shape, labels.unique().tolist()
        if found != (torch.uint8, count, info.in_channels, 32, 32, count, list(range(info.num_classes))):
            raise ValueError(f"its {split} images or labels are not as published")
        splits.append((images.contiguous(), labels))
    return tuple(splits)
