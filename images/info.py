"""Shared parts of all readers of data sets: descriptions, decoding of an image, free memory, channel statistics."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

USABLE_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DECODERS = min(8, USABLE_CORES)  # threads, or processes, that decode images

Split = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

# Paths of images as one array of bytes, and labels int64 (N,). A million Python strings would need more memory, and
# forked processes would copy all of them, because reading a string writes its reference count.
Listing = tuple[np.ndarray, Tensor]


class DataError(Exception):
    """The data cannot be used. The text is one line: the error, the file or folder, and the remedy."""


@dataclass(frozen=True)
class DataSet:
    """A data set: its reader, the shape of its images, and the augmentation in training.

    Args:
        load: called with the folder of the data (a Path) and a flag that allows downloads. Returns the training and the
            test images, each as `(images, labels)`: uint8 (N, in_channels, image_size, image_size) and int64 (N,), or
            raises `DataError`. None for an imagefolder, see `tree.py`.
        classes: names of the classes, in the order of the labels.
        mean, std: of each channel, for values scaled to 0 .. 1; None: computed from the training images.
        in_channels, image_size: channels, and height and width, of an image.
        crop: zero padding on each side of a training image, in pixels, for random crops to the image's size.
        flip: True to flip training images left to right at random.
    """

    load: Callable[[Path, bool], tuple[Split, Split]] | None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    in_channels: int = 3
    image_size: int = 32
    crop: int = 0
    flip: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def import_torchvision(module: str, purpose: str, instead: str) -> ModuleType:
    """Return a module of torchvision, or raise a DataError that names the purpose and what to use instead."""
    try:
        return import_module(f"torchvision.{module}")
    except Exception as error:  # a torchvision for another torch raises any error
        cure = f"install the torchvision that belongs to torch {torch.__version__}, or use {instead}"
        raise DataError(f"{purpose} needs torchvision, which cannot be imported ({one_line(error)}): {cure}") from error


def one_line(error: Exception) -> str:
    """Return an exception's text on one line, or its type if there is no text."""
    return " ".join(str(error).split()) or type(error).__name__


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return at most `count` of the indices 0 .. total - 1, evenly spaced and in order."""
    count = min(count, total)
    return np.arange(count) * total // max(count, 1)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the means and standard deviations of C channels, for values scaled to 0 .. 1, from exact counts of values.

    A deviation is at least one grey level, as a divisor.

    Args:
        images: uint8 (N, C, H, W).
    """
    parts = images.split(4096)
    counts = [sum(part[:, i].flatten().bincount(minlength=256) for part in parts) for i in range(images.shape[1])]
    frequency = torch.stack(counts) / counts[0].sum().double()  # (C, 256)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = frequency @ value
    std = (frequency * (value - mean.unsqueeze(1)) ** 2).sum(1).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def decode(path: bytes, transform: Callable) -> np.ndarray:
    """Decode an image file of any mode, and return `transform(image)` of the RGB image.

    The orientation in EXIF data is ignored, as in torchvision.

    Raises:
        DataError: if decoding or the transform fails; the message names the file.
    """
    from PIL import Image  # scripts without image files do not wait for this import

    name = os.fsdecode(path)
    try:
        with Image.open(name) as image:
            if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip to white
                image = Image.fromarray(_eight_bits(np.asarray(image)))
            return transform(image.convert("RGB"))
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and others
        raise DataError(f"cannot read the image {name} ({one_line(error)}): replace or remove it") from error


def _eight_bits(values):
    """Grey values as uint8. The largest value, not the file's mode, decides whether they have 8, 12 or 16 bits."""
    largest = values.max()
    if not 0 <= values.min() <= largest < 2**16 or (values % 1).any():
        raise ValueError("its values are not whole numbers of 16 bits; save it with 8 or 16 bits")
    bits = next(bits for bits in (8, 12, 16) if largest < 2**bits)
    return (values.astype(np.uint16) >> (bits - 8)).astype(np.uint8)


def physical_memory() -> float:
    """Return the bytes of the machine's memory, or infinity if the system does not report them."""
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def available_memory() -> float:
    """Return the bytes that a process can allocate now, or `physical_memory` if the system does not report them."""
    limits = [physical_memory()]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, StopIteration, ValueError):  # the limit of a container or a job; "max" is not a number
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
        limits.append(int(Path("/sys/fs/cgroup", group, "memory.max").read_text()))
    return min(limits)
