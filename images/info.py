"""What all readers of a data set share: its description, its splits, and the error for data that cannot be used."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

# Places of images, see decoding.py, in one array, and labels int64 (N,). A million Python strings would take more, and
# processes that are forked would copy them all by counting references to them.
Listing = tuple[np.ndarray, Tensor]


class DataError(Exception):
    """The data cannot be used. The text is one line: what is wrong, where, and what to do about it."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a network has to know of a data set, whose images are `(in_channels, image_size, image_size)`."""

    name: str
    classes: tuple[str, ...]  # their names, in the order of the labels
    in_channels: int
    image_size: int
    mean: tuple[float, ...] | None  # per channel, of values scaled to 0 .. 1; None for an imagefolder before it is read
    std: tuple[float, ...] | None

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def no_torchvision(purpose: str, error: BaseException, instead: str) -> DataError:
    """Return the error for a torchvision that cannot be imported.

    Args:
        purpose: what needs it, as the beginning of a sentence.
        error: what the import raised. One that was built for another torch fails in many ways.
        instead: what does without.
    """
    return DataError(
        f"{purpose} with torchvision, which cannot be imported ({one_line(error)}): install the torchvision that "
        f"belongs to torch {torch.__version__}, or use {instead}"
    )


def one_line(error: BaseException) -> str:
    """Return an exception's text on one line; its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def evenly_spaced(total: int, limit: int | None) -> Tensor:
    """Return at most `limit` of the indices 0 .. total - 1, evenly spaced and in order; all of them for None."""
    kept = total if limit is None else min(limit, total)
    return torch.arange(kept) * total // max(kept, 1)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, from an exact count of the 256 values.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        C means and C deviations of values scaled to 0 .. 1; these are a grey level at least, to divide by.
    """
    parts = images.split(4096)
    counts = [sum(part[:, i].flatten().bincount(minlength=256) for part in parts) for i in range(images.shape[1])]
    frequency = torch.stack(counts) / counts[0].sum().double()  # (C, 256)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = frequency @ value
    std = (frequency * (value - mean.unsqueeze(1)) ** 2).sum(1).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
