"""The published sets that torchvision reads: as they lie in a folder, else from their archives, else from the network.

    train, test = read_published(info, Path("dataset"))      # each (images uint8 (N, C, H, W), labels int64 (N,))

Which files a set has, with their MD5s and addresses, is torchvision's knowledge. A download gets its name only when
its MD5 is right, so an archive is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from images.info import DataError, DatasetInfo, Split, one_line

# torchvision's name, training images, test images
PUBLISHED = {
    "cifar10": ("CIFAR10", 50_000, 10_000),
    "cifar100": ("CIFAR100", 50_000, 10_000),
    "svhn": ("SVHN", 73_257, 26_032),
    "mnist": ("MNIST", 60_000, 10_000),
    "fashionmnist": ("FashionMNIST", 60_000, 10_000),
}
CONNECT_TIMEOUT = 10.0  # seconds that a server has to answer


class Archive(NamedTuple):
    """A file of a published set as it is downloaded, and the files that it holds.

    Args:
        path: where it lies, or is to lie. Its folder is the one it is unpacked into.
        md5: of the archive.
        url: to download it from.
        contents: the files in it, each with its MD5 or its size in bytes.
    """

    path: Path
    md5: str
    url: str
    contents: dict[Path, str | int]

    def is_intact(self) -> bool:
        return _matches(self.path, self.md5)

    def missing(self) -> list[Path]:
        """Return those of its contents that are not there, or not as published."""
        return [path for path, published in self.contents.items() if not _matches(path, published)]

    def unpack(self) -> None:
        from torchvision.datasets.utils import extract_archive

        extract_archive(str(self.path), str(self.path.parent))

    def download(self) -> None:
        """Download the archive, into a folder that is made where there is none.

        Raises:
            DataError: where the folder cannot be written to.
            OSError: where the network or the disk fails, or what arrives is not what was published.
        """
        folder, partial = self.path.parent, self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.touch()
        except OSError as error:
            raise DataError(f"cannot write to {folder} ({error.strerror}): choose another data folder") from error
        try:
            request = urllib.request.Request(self.url, headers={"User-Agent": "linearconv"})
            with (
                urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT) as page,
                open(partial, "wb") as file,
                tqdm.wrapattr(file, "write", total=page.length, desc=self.path.name, disable=None) as counted,
            ):
                shutil.copyfileobj(page, counted)
            if not _matches(partial, self.md5):
                raise OSError(f"what {self.url} sends is damaged")
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)


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
    except Exception as error:  # a torchvision that was built for another torch fails in many ways
        raise DataError(
            f"{info.name} is read with torchvision, which cannot be imported ({one_line(error)}): install "
            f"the torchvision that belongs to torch {torch.__version__}, or use digits or imagefolder"
        ) from error
    dataset = getattr(datasets, PUBLISHED[info.name][0])
    archives = _archives(info.name, dataset, root)
    _obtain(info.name, archives, download)
    try:
        return _read_splits(info, dataset, root)
    except Exception as error:  # whatever torchvision, pickle, struct or scipy make of damaged files
        where = f"{info.name} in {archives[0].path.parent}"
        raise DataError(f"{where} is damaged ({one_line(error)}): remove its files and start again") from error


def _matches(path: Path, published: str | int) -> bool:
    """Whether a file is there, with the MD5 or the size in bytes that was published."""
    try:
        if isinstance(published, int):
            return path.is_file() and path.stat().st_size == published
        with open(path, "rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        return md5.hexdigest() == published
    except OSError:  # it is missing, or may not be read
        return False


def _archives(name: str, dataset: type, root: Path) -> list[Archive]:
    """A set's archives, from what torchvision knows of them."""
    if name == "svhn":
        files = map(dataset.split_list.get, ("train", "test"))
        return [Archive(root / file, md5, url, {root / file: md5}) for url, file, md5 in files]
    if name in ("cifar10", "cifar100"):
        meta = dataset.meta["filename"], dataset.meta["md5"]
        files = *dataset.train_list, *dataset.test_list, meta
        contents = {root / dataset.base_folder / file: md5 for file, md5 in files}
        return [Archive(root / dataset.filename, dataset.tgz_md5, dataset.url, contents)]
    # torchvision takes any MNIST files that exist. Their sizes betray an unpacking that was cut short.
    _, train, test = PUBLISHED[name]
    sizes = 16 + 28 * 28 * train, 8 + train, 16 + 28 * 28 * test, 8 + test
    folder = root / dataset.__name__ / "raw"
    return [
        Archive(folder / file, md5, dataset.mirrors[0] + file, {folder / file.removesuffix(".gz"): size})
        for (file, md5), size in zip(dataset.resources, sizes, strict=True)
    ]


def _obtain(name: str, archives: list[Archive], download: bool) -> None:
    """Unpack the archives whose contents are not all there, and download those that are not there either."""
    wanted, failure = [archive for archive in archives if archive.missing()], ""
    try:
        for archive in wanted:
            if download and not archive.is_intact():
                archive.download()
            if archive.missing() and archive.is_intact():
                archive.unpack()
    except DataError:
        raise
    except Exception as error:  # network, disk or permissions
        failure = f" ({one_line(error)})"
    if not (wanted := [archive for archive in wanted if archive.missing()]):
        return

    absent = [archive for archive in wanted if not archive.is_intact()]
    damaged = [archive.path for archive in absent if os.path.exists(archive.path)]
    file, archive = (damaged or wanted[0].missing())[0], wanted[0].path
    readable = "damaged" if os.access(file, os.R_OK) else "not readable"
    state = readable if os.path.exists(file) else "missing"
    files = ", ".join(f"{path.name} (MD5 {md5}, from {url})" for path, md5, url, _ in absent)
    cure = f"bring {files} to the folder {archive.parent}" if absent else f"unpack {archive.name} there by hand"
    if state == "damaged":
        cure += "; a set that was rebuilt can be read as an imagefolder"
    doing = "downloaded" if download else "read"
    raise DataError(f"{name} cannot be {doing}{failure}: {file} is {state}; {cure}")


def _read_splits(info: DatasetInfo, dataset: type, root: Path) -> tuple[Split, Split]:
    """Both splits of a set that lies unpacked in `root`; any exception if they are not as published."""
    splits = []
    for split, count in zip(("train", "test"), PUBLISHED[info.name][1:], strict=True):
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
