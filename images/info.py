"""Shared parts of all readers of data sets: descriptions, decoding of an image, free memory, channel statistics.

Only the functions that decode import Pillow, so that scripts without image files do not wait for the import.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Split = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

# Paths of images as one array of bytes, and labels int64 (N,). A million Python strings would need more memory, and
# forked processes would copy all of them, because reading a string writes its reference count.
Listing = tuple[np.ndarray, Tensor]

MEMORY_SHARE = 0.5  # of the free memory that a set may use; batches and the network need the rest


class DataError(Exception):
    """The data cannot be used. The text is one line: the error, the file or folder, and the remedy."""


@dataclass(frozen=True)
class DataSet:
    """A data set: its reader, the shape of its images, and the augmentation in training.

    Args:
        load: called with the folder of the data (a Path) and a flag that allows downloads. The function returns the
            training and the test images, each as `(images, labels)`: uint8 (N, in_channels, image_size, image_size) and
            int64 (N,). It raises `DataError` if they are not available. None for an imagefolder, see `tree.py`.
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


def no_torchvision(purpose: str, error: BaseException, instead: str) -> DataError:
    """Return the error for a torchvision that cannot be imported.

    Args:
        purpose: the task that needs torchvision, as the beginning of a sentence.
        error: the exception of the import; a torchvision for another version of torch may raise any.
        instead: an alternative without torchvision.
    """
    return DataError(
        f"{purpose} with torchvision, which cannot be imported ({one_line(error)}): install the torchvision that "
        f"belongs to torch {torch.__version__}, or use {instead}"
    )


def one_line(error: BaseException) -> str:
    """Return an exception's text on one line, or its type if there is no text."""
    return " ".join(str(error).split()) or type(error).__name__


def evenly_spaced(total: int, limit: int | None) -> Tensor:
    """Return at most `limit` of the indices 0 .. total - 1, evenly spaced and in order; all indices for None."""
    kept = total if limit is None else min(limit, total)
    return torch.arange(kept) * total // max(kept, 1)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, from exact counts of the 256 values.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        C means and C deviations of values scaled to 0 .. 1. A deviation is at least one grey level, as a divisor.
    """
    parts = images.split(4096)
    counts = [sum(part[:, i].flatten().bincount(minlength=256) for part in parts) for i in range(images.shape[1])]
    frequency = torch.stack(counts) / counts[0].sum().double()  # (C, 256)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = frequency @ value
    std = (frequency * (value - mean.unsqueeze(1)) ** 2).sum(1).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def decode(path: bytes, transform: Callable[["Image"], np.ndarray]) -> np.ndarray:
    """Decode an image file of any mode to RGB, and return the transformed image.

    The orientation in EXIF data is ignored, as in torchvision.

    Raises:
        DataError: if decoding or the transform fails; the message names the file.
    """
    from PIL import Image

    try:
        with Image.open(os.fsdecode(path)) as image:
            if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip to white
                image = Image.fromarray(_eight_bits(np.asarray(image)))
            return transform(image.convert("RGB"))
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and others
        name = os.fsdecode(path)
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


def fits(needed: int, device: torch.device, copies: int = 1) -> bool:
    """Return True if images need at most half of the free memory.

    Args:
        needed: bytes of the images.
        device: device of the images; images for a GPU are in the machine's memory first.
        copies: number of processes on this machine that each keep all images.
    """
    if device.type == "cuda" and needed > MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return False
    return copies * needed <= MEMORY_SHARE * available_memory()
