"""A tree of image files, one folder a class: listed, and read into memory.

    root/train/<class>/*  and  root/test/<class>/*  (or root/val/<class>/* where there is no test)

    train, test = read_tree(root, size=32)       # each (images uint8 (N, 3, size, size), labels int64 (N,))

Images may have any size, mode and format that Pillow reads. They become RGB and are resized to `size` x `size`
(antialiased bilinear, whatever their aspect ratio). Hidden files and files that are not named like an image are passed
over. Anything else amiss is a `DataError` that names it.
"""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from images.info import DataError, Listing, Split, evenly_spaced, is_image, open_rgb, physical_memory

LAYOUT = "an imagefolder is train/<class>/* beside test/<class>/* (or val/<class>/*)"
CHUNK = 64  # images a thread reads at a time
SMALL_FILE = 16 * 1024  # bytes; below it, decoding an image takes less time than the Python around it


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the classes of a split, the names of its folders, sorted.

    Raises:
        DataError: where there are none.
    """
    if classes := tuple(path.name for path in _visible(folder, LAYOUT) if path.is_dir()):
        return classes
    raise DataError(f"no class folders in {folder}: {LAYOUT}")


def list_tree(root: Path, limit: int | None = None) -> tuple[Listing, Listing]:
    """List the training and the test images below `root`, the classes numbered in the order of their names.

    Args:
        root: the folder that holds `train` and `test` or `val`.
        limit: take this many of each split, evenly spaced over the sorted files.

    Returns:
        `(places, labels)` of both splits.

    Raises:
        DataError: for a split or class that is missing or empty, and for a class that is in the test images alone.
    """
    folders = root / "train", root / ("test" if os.path.isdir(root / "test") else "val")
    classes = class_names(folders[0])
    if unknown := set(class_names(folders[1])) - set(classes):
        alone = folders[1] / min(unknown)
        raise DataError(f"the class {alone} is not in {folders[0]}: add it there or remove it here")

    splits = []
    for folder in folders:
        places, labels = _list_folders(folder, classes)
        kept = evenly_spaced(len(places), limit).numpy()
        splits.append((places[kept], labels[kept]))
    return tuple(splits)


def decoded_bytes(splits: Sequence[Listing], size: int) -> int:
    """Return what the images of listings take in memory at `size` x `size`."""
    return sum(len(places) for places, _ in splits) * 3 * size * size


def read_tree(root: Path, size: int, limit: int | None = None) -> tuple[Split, Split]:
    """Read the images of `list_tree`.

    Args:
        root, limit: of `list_tree`.
        size: height and width that every image is brought to.

    Returns:
        `(images, labels)` of both splits: uint8 (N, 3, size, size) and int64 (N,).

    Raises:
        DataError: as `list_tree`; for an image that cannot be decoded; and, before reading, for more images than fit
            into memory.
    """
    splits = list_tree(root, limit)
    needed, present = decoded_bytes(splits, size) / 2**30, physical_memory() / 2**30
    if needed > present:
        taken = f"the images in {root} take {needed:.1f} GiB of {present:.1f} GiB of memory at {size}x{size}"
        raise DataError(f"{taken}: stream them (--in-memory no), or use a smaller image size or fewer images")
    total = sum(len(places) for places, _ in splits)
    with tqdm(total=total, desc="reading images", unit="image", disable=None) as bar:
        train, test = ((read_images(places, size, bar), labels) for places, labels in splits)
    return train, test


def read_images(places: np.ndarray, size: int, bar: tqdm | None = None) -> Tensor:
    """Return the images of a listing as uint8 (N, 3, size, size); a DataError names one that cannot be decoded."""
    images = np.empty((len(places), 3, size, size), np.uint8)

    def read(start):
        chunk = places[start : start + CHUNK]
        for i, place in enumerate(chunk, start):
            images[i] = _resized(place, size).transpose(2, 0, 1)
        return len(chunk)

    # Pillow lets go of the interpreter lock while it decodes, so threads share that work. Small files leave little to
    # share, and passing the lock to and fro would double the time.
    some = places[evenly_spaced(len(places), 100).numpy()]
    sizes = [os.path.getsize(place) if os.path.exists(place) else 0 for place in some]
    threads = 1 if sum(sizes) < SMALL_FILE * len(sizes) else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(read, range(0, len(places), CHUNK)):
            if bar is not None:
                bar.update(done)
    return torch.from_numpy(images)


def _visible(folder, cure):
    """What a folder holds that is not hidden, sorted by name."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name[0] != "."]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror}): {cure}") from error


def _list_folders(folder, classes):
    files = [_image_files(folder / name) for name in classes]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(list(map(len, files))))
    return np.array(list(itertools.chain.from_iterable(files))), labels


def _image_files(folder):
    """The paths of a class's images, in bytes."""
    inside = _visible(folder, "every class of the training images needs one")
    if files := [os.fsencode(path) for path in inside if is_image(path.name)]:
        return files
    raise DataError(f"no images in the class folder {folder}: add some, or remove the class everywhere")


def _resized(place, size):
    """One image as uint8 (size, size, 3)."""
    image = open_rgb(place)
    if image.size != (size, size):
        from PIL.Image import Resampling

        image = image.resize((size, size), Resampling.BILINEAR)
    return np.asarray(image)
