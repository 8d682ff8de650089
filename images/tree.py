"""A tree of image files with one folder for each class: listing the files, and reading them into memory.

    root/train/<class>/**  and  root/test/<class>/**  (or root/val/<class>/** if test has no class folders)

    train, test = read_tree(root, size=32)       # each (images uint8 (N, 3, size, size), labels int64 (N,))

Images may be in subfolders of a class, and have any mode. They are converted to RGB and resized (antialiased bilinear;
the aspect ratio changes). Regular files with an ending in `IMAGE_ENDINGS` are images; other files are ignored.
"""

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

from images.info import DECODERS, DataError, Listing, Split, decode, physical_memory

# torchvision's IMG_EXTENSIONS, and further endings of image files that Pillow decodes without plugins
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jpe", ".jfif", ".gif", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
)
LAYOUT = "an imagefolder is train/<class>/* beside test/<class>/* (or val/<class>/*)"
CHUNK = 64  # images that a thread reads at a time


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the classes of a split: the sorted names of its folders; a DataError if there are none."""
    subfolders, _ = _visible(folder)
    if not subfolders:
        raise DataError(f"no class folders in {folder}: {LAYOUT}")
    return tuple(entry.name for entry in subfolders)


def list_tree(root: Path) -> tuple[Listing, Listing]:
    """List the training and the test images below `root`, with labels in the order of the class names.

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
    return _listed(train, classes), _listed(test, classes)


def decoded_bytes(splits: Sequence[Listing], size: int) -> int:
    """Return the bytes of the images of listings in memory at `size` x `size`."""
    return sum(len(paths) for paths, _ in splits) * 3 * size * size


def read_tree(root: Path, size: int) -> tuple[Split, Split]:
    """Read the images of `list_tree`, resized to height and width `size`.

    Raises:
        DataError: as `list_tree`, for an image that cannot be decoded, or for more images than fit into memory.
    """
    splits = list_tree(root)
    needed, present = decoded_bytes(splits, size) / 2**30, physical_memory() / 2**30
    if needed > present:
        taken = f"the images in {root} take {needed:.1f} GiB of {present:.1f} GiB of memory at {size}x{size}"
        raise DataError(f"{taken}: stream them (--in-memory no), or use a smaller image size or fewer images")
    train, test = ((read_images(paths, size), labels) for paths, labels in splits)
    return train, test


def read_images(paths: np.ndarray, size: int) -> Tensor:
    """Return the images of a listing, uint8 (N, 3, size, size); a DataError names an image that cannot be decoded."""
    images = np.empty((len(paths), 3, size, size), np.uint8)
    chunks = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(DECODERS) as pool:  # in parallel, because Pillow releases the interpreter lock
        done = pool.map(partial(_read_chunk, images, paths), chunks)
        list(tqdm(done, "reading images", len(chunks), disable=None, unit="image", unit_scale=CHUNK))
    return torch.from_numpy(images)


def _read_chunk(images, paths, start):
    """Decode up to CHUNK files into their places in `images`."""
    for i, path in enumerate(paths[start : start + CHUNK], start):
        images[i] = decode(path, partial(_resized, size=images.shape[-1])).transpose(2, 0, 1)


def _resized(image, size):
    """An RGB image as uint8 (size, size, 3)."""
    from PIL.Image import Resampling

    return np.asarray(image.resize((size, size), Resampling.BILINEAR))


def _visible(folder):
    """The subfolders and the other entries of a folder, without hidden ones, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        return [entry for entry in visible if entry.is_dir()], [entry for entry in visible if not entry.is_dir()]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror}): {LAYOUT}") from error


def _listed(folder, classes):
    """The listing of one split."""
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = _image_files(folder / name)
        if not found:
            raise DataError(f"no images in the class folder {folder / name}: add some, or remove the class everywhere")
        paths += found
        labels += [label] * len(found)
    return np.array(paths), torch.tensor(labels)


def _image_files(folder):
    """The paths of the images in a folder, then of the images in its subfolders, as bytes."""
    subfolders, others = _visible(folder)
    files = []
    for entry in others:
        is_regular = entry.is_file() or not os.path.exists(entry.path)  # reading a dangling link raises the error
        if entry.name.lower().endswith(IMAGE_ENDINGS) and is_regular:
            files.append(os.fsencode(entry.path))
    for subfolder in subfolders:
        files += _image_files(subfolder.path)
    return files
