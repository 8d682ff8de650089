"""A tree of image files, one folder a class, read into memory.

    root/train/<class>/*  and  root/test/<class>/*  (or root/val/<class>/* where there is no test)

    train, test = read_tree(root, size=32)       # each (images uint8 (N, 3, size, size), labels int64 (N,))

Images may have any size, mode and format that Pillow reads. They become RGB and are resized to `size` x `size`
(antialiased bilinear, whatever their aspect ratio). Hidden files and files that are not named like an image are passed
over. Anything else amiss is a `DataError` that names it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from images.info import DataError, Split, evenly_spaced, one_line

LAYOUT = "an imagefolder is train/<class>/* beside test/<class>/* (or val/<class>/*)"
CHUNK = 64  # images a thread reads at a time
SMALL_FILE = 16 * 1024  # bytes; below it, decoding an image takes less time than the Python around it


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the classes of a split, the names of its folders, sorted; a DataError where there are none."""
    if classes := tuple(path.name for path in _visible(folder, LAYOUT) if path.is_dir()):
        return classes
    raise DataError(f"no class folders in {folder}: {LAYOUT}")


def read_tree(root: Path, size: int, limit: int | None = None) -> tuple[Split, Split]:
    """Read the training and the test images below `root`, the classes numbered in the order of their names.

    Args:
        root: the folder that holds `train` and `test` or `val`.
        size: height and width that every image is brought to.
        limit: read this many of each split, evenly spaced over the sorted files.

    Returns:
        `(images, labels)` of both splits: uint8 (N, 3, size, size) and int64 (N,).

    Raises:
        DataError: for a split or class that is missing or empty, for a class that is in the test images alone, for an
            image that cannot be decoded, and, before reading, for more images than fit into memory.
    """
    folders = root / "train", root / ("test" if os.path.isdir(root / "test") else "val")
    classes = class_folders(folders[0])
    if unknown := set(class_folders(folders[1])) - set(classes):
        alone = folders[1] / min(unknown)
        raise DataError(f"the class folder {alone} is not in {folders[0]}: add it there or remove it here")

    splits = []
    for folder in folders:
        files = [(path, label) for label, name in enumerate(classes) for path in _image_files(folder / name)]
        splits.append([files[i] for i in evenly_spaced(len(files), limit).tolist()])

    total = sum(map(len, splits))
    needed, present = total * 3 * size * size / 2**30, _physical_memory() / 2**30
    if needed > present:
        taken = f"the images in {root} take {needed:.1f} GiB of {present:.1f} GiB of memory at {size}x{size}"
        raise DataError(f"{taken}: use a smaller image size or fewer images")
    with tqdm(total=total, desc="reading images", unit="image", disable=None) as bar:
        train, test = (_decode(files, size, bar) for files in splits)
    return train, test


def _visible(folder, cure):
    """What a folder holds that is not hidden, sorted by name."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name[0] != "."]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror}): {cure}") from error


def _image_files(folder):
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    inside = _visible(folder, "every class of the training images needs one")
    if files := [path for path in inside if path.suffix.lower() in suffixes]:
        return files
    raise DataError(f"no images in the class folder {folder}: add some, or remove the class everywhere")


def _decode(files, size, bar):
    """The images and labels of files [(path, label)]."""
    images = np.empty((len(files), 3, size, size), np.uint8)

    def read(start):
        chunk = files[start : start + CHUNK]
        for i, (path, _) in enumerate(chunk, start):
            images[i] = _rgb(path, size).transpose(2, 0, 1)
        return len(chunk)

    # Pillow lets go of the interpreter lock while it decodes, so threads share that work. Small files leave little to
    # share, and passing the lock to and fro would double the time.
    sample = [files[i][0] for i in evenly_spaced(len(files), 100).tolist()]
    sizes = [path.stat().st_size for path in sample if path.exists()]  # reading will name a dangling link
    threads = 1 if sum(sizes) < SMALL_FILE * len(sizes) else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(read, range(0, len(files), CHUNK)):
            bar.update(done)
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


def _rgb(path, size):
    """One image as uint8 (size, size, 3)."""
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point values have no fixed range; save it with 8 or 16 bits")
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise DataError(f"cannot read the image {path} ({one_line(error)}): replace or remove it") from error


def _physical_memory():
    """Bytes; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return float("inf")
