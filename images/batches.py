"""Augmentation of whole batches: random crop and horizontal flip with separate draws per image, then normalisation.

The distribution of each image is exactly the distribution of torchvision's `RandomCrop(size, padding)` and
`RandomHorizontalFlip(0.5)` on the uint8 values. Normalisation comes last, so the padding is black.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from images.loader import Loader

# Batches are built in blocks of about this many values and returned as slices, which avoids most of the overhead of
# starting operations. A block (six batches of 50 CIFAR images) fits in the cache and takes little time.
BLOCK = 2**20


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad images (B, C, H, W) with zeros on every side, and return a window of the original size of each image.

    `top` and `left` (B,) int64 in 0 .. 2 * padding are the start of each window.
    """
    batch, channels, height, width = images.shape
    # A row of a window is `width` contiguous values in memory, so the crop is a gather of B * C * H rows. The gather
    # copies whole rows; indexing by (b, :, top, left) copies single bytes and takes three times as long.
    padded = F.pad(images, (padding,) * 4)
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    row = plane * padded.shape[2] + top.view(batch, 1, 1) + torch.arange(height, device=images.device)  # (B, C, H)
    start = row * padded.shape[3] + left.view(batch, 1, 1)
    every_row = padded.flatten().unfold(0, width, 1)  # a view: row i begins at value i of `padded`
    return every_row.index_select(0, start.view(-1)).view(batch, channels, height, width)


class BatchLoader(Loader):
    """Batches of a set of images in memory.

    Each pass draws all crops and flips at its start, so that no batch on a GPU waits for the host.

    Args:
        images: uint8 (N, C, H, W), on the device of the labels.
        labels, mean, std, options: arguments of `Loader`.
        padding: width of the zero padding for random crops, in pixels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int = 0,
        **options: Any,
    ):
        super().__init__(labels, mean, std, **options)
        self.images, self.padding = images, padding

    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin a pass and yield its batches, except the first `skip`."""
        device, order = self.images.device, self._draw_order()
        top, left = torch.randint(2 * self.padding + 1, (2, self.num_images), generator=self.generator)
        flipped = self._draw_flips(order)

        per_block = max(1, BLOCK // (self.batch_size * self.images[0].numel()))  # number of batches
        draws = (self._shard(draw)[skip * self.batch_size :] for draw in (order, top, left, flipped))
        blocks = (draw.to(device).split(per_block * self.batch_size) for draw in draws)
        for index, top, left, flipped in zip(*blocks, strict=True):
            if len(index) == 0:  # all batches are skipped, or there are fewer images than processes
                return
            images = self.images.index_select(0, index)
            if self.padding:
                images = crop(images, self.padding, top, left)
            if self.flip:
                both = torch.cat([images, images.flip(3)])  # four times as fast as torch.where
                images = both.index_select(0, torch.arange(len(index), device=device) + len(index) * flipped)
            images, labels = self._normalise(images), self.labels.index_select(0, index)
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
