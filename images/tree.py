"""A tree of image files with one folder for each class: listing the files, and reading them into memory.

    root/train/<class>/**  and  root/test/<class>/**  (or root/val/<class>/** if test has no class folders)

    train, test = read_tree(root, size=32)       # each (images uint8 (N, 3, size, size), labels int64 (N,))

Images may be in subfolders of a class, and may have any size and mode. They are converted to RGB and resized to `size`
x `size` (antialiased bilinear; the aspect ratio changes). Regular files with an ending in `IMAGE_ENDINGS` are images;
other files and hidden files are ignored. All other errors raise a `DataError` with the file or folder.
"""

import itertools
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from images.info import DataError, Listing, Split, decode, evenly_spaced, physical_memory

# torchvision's IMG_EXTENSIONS, and further endings of image files that Pillow decodes without plugins
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jpe", ".jfif", ".gif", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
)
LAYOUT = "an imagefolder is train/<class>/* beside test/<class>/* (or val/<class>/*)"
CHUNK = 64  # images that a thread reads at a time
SMALL_FILE = 16 * 1024  # bytes; for smaller files the Python code takes longer than decoding


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the classes of a split: the sorted names of its folders.

    Raises:
        DataError: if there are no folders.
    """
    subfolders, _ = _visible(folder)
    if subfolders:
        return tuple(entry.name for entry in subfolders)
    raise DataError(f"no class folders in {folder}: {LAYOUT}")


def list_tree(root: Path, limit: int | None = None) -> tuple[Listing, Listing]:
    """List the training and the test images below `root`, with labels in the order of the class names.

    Args:
        root: the folder with `train` and `test` or `val`.
        limit: number of images of each split, evenly spaced over the sorted files.

    Returns:
        `(paths, labels)` of both splits.

    Raises:
        DataError: for a missing or empty split or class, or for a class that only the test images have.
    """
    train, test, val = (root / split for split in ("train", "test", "val"))
    classes = class_names(train)
    if val.is_dir() and not any((test / name).is_dir() for name in classes):
        if test.is_dir():  # as in ImageNet, whose test images have no labels
            warnings.warn(f"{test} has no class folders: the test images are those in {val}", stacklevel=2)
        test = val
    if unknown := set(class_names(test)) - set(classes):
        alone = test / min(unknown)
        raise DataError(f"the class {alone} is not in {train}: add it there or remove it here")
    return _listed(train, classes, limit), _listed(test, classes, limit)


def decoded_bytes(splits: Sequence[Listing], size: int) -> int:
    """Return the bytes of the images of listings in memory at `size` x `size`."""
    return sum(len(paths) for paths, _ in splits) * 3 * size * size


def read_tree(root: Path, size: int, limit: int | None = None) -> tuple[Split, Split]:
    """Read the images of `list_tree`.

    Args:
        root, limit: arguments of `list_tree`.
        size: height and width of the resized images.

    Returns:
        `(images, labels)` of both splits: uint8 (N, 3, size, size) and int64 (N,).

    Raises:
        DataError: as `list_tree`, for an image that cannot be decoded, or, before reading, for more images than fit
            into memory.
    """
    splits = list_tree(root, limit)
    needed, present = decoded_bytes(splits, size) / 2**30, physical_memory() / 2**30
    if needed > present:
        taken = f"the images in {root} take {needed:.1f} GiB of {present:.1f} GiB of memory at {size}x{size}"
        raise DataError(f"{taken}: stream them (--in-memory no), or use a smaller image size or fewer images")
    total = sum(len(paths) for paths, _ in splits)
    with tqdm(total=total, desc="reading images", unit="image", disable=None) as bar:
        train, test = ((read_images(paths, size, bar), labels) for paths, labels in splits)
    return train, test


def read_images(paths: np.ndarray, size: int, bar: tqdm | None = None) -> Tensor:
    """Return the images of a listing, uint8 (N, 3, size, size); a DataError names an image that cannot be decoded."""
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def read(start):
        chunk = paths[start : start + CHUNK]
        for i, path in enumerate(chunk, start):
            images[i] = decode(path, partial(_resized, size=size)).transpose(2, 0, 1)
        return len(chunk)

    # Pillow releases the interpreter lock during decoding, so threads decode in parallel. For small files the threads
    # have no speed-up, and switching the lock would double the time.
    some = paths[evenly_spaced(len(paths), 100).numpy()]
    sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in some]
    threads = 1 if sum(sizes) < SMALL_FILE * len(sizes) else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(read, range(0, len(paths), CHUNK)):
            if bar is not None:
                bar.update(done)
    return torch.from_numpy(images)


def _visible(folder):
    """The subfolders and the other entries of a folder, without hidden ones, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        return [entry for entry in visible if entry.is_dir()], [entry for entry in visible if not entry.is_dir()]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror}): {LAYOUT}") from error


def _listed(folder, classes, limit):
    """The listing of one split."""
    files = [_image_files(folder / name) for name in classes]
    for name, found in zip(classes, files, strict=True):
        if not found:
            raise DataError(f"no images in the class folder {folder / name}: add some, or remove the class everywhere")
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    kept = evenly_spaced(len(labels), limit)
    return np.array(list(itertools.chain.from_iterable(files)))[kept.numpy()], labels[kept]


def _image_files(folder):
    """The paths of the images in a folder, then of the images in its subfolders, as bytes."""
    subfolders, others = _visible(folder)
    files = []
    for entry in others:
        if not entry.name.lower().endswith(IMAGE_ENDINGS):
            continue
        if entry.is_file() or not os.path.exists(entry.path):  # reading a dangling link raises the error
            files.append(os.fsencode(entry.path))
    for subfolder in subfolders:
        files += _image_files(subfolder.path)
    return files


def _resized(image, size):
    """An RGB image as uint8 (size, size, 3)."""
    if image.size != (size, size):
        from PIL.Image import Resampling

        image = image.resize((size, size), Resampling.BILINEAR)
    return np.asarray(image)
