"""Whole batches at once: random crop and horizontal flip, drawn for every image on its own, then normalisation.

A batch is a handful of tensor operations on images that lie in memory, nothing is done image by image. An image comes
out with exactly the distribution of torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip(0.5)` on its
uint8 values, before normalisation, so that the padding is black.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Batches are made in blocks of about this many values and handed out in slices, which spares most of the cost of
# starting operations. A block (six batches of 50 CIFAR images) fits the cache and is there at once.
BLOCK = 2**20


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Return images padded by zeros on every side, of each of which a window of the old size is cut out.

    Args:
        images: (B, C, H, W), any dtype.
        padding: pixels on each side.
        top, left: (B,) int64 in 0 .. 2 * padding: where each window begins; at `padding` it is the image itself.
    """
    batch, channels, height, width = images.shape
    # A row of a window is `width` neighbours in memory, so the crop is a gather of B * C * H such rows. It
    # copies whole rows; indexing by (b, :, top, left) copies byte by byte and takes three times as long.
    padded = F.pad(images, (padding,) * 4)
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    row = plane * padded.shape[2] + top.view(batch, 1, 1) + torch.arange(height, device=images.device)  # (B, C, H)
    start = row * padded.shape[3] + left.view(batch, 1, 1)
    every_row = padded.flatten().unfold(0, width, 1)  # a view: row i begins at value i of `padded`
    return every_row.index_select(0, start.view(-1)).view(batch, channels, height, width)


def horizontal_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Return images (B, C, H, W), those left to right of which `flipped` (B,) is True."""
    batch = len(images)
    both = torch.cat([images, images.flip(3)])  # four times as fast as torch.where
    return both.index_select(0, torch.arange(batch, device=images.device) + batch * flipped)


class BatchLoader:
    """Batches of a set of images that lies in memory, shuffled and augmented if wanted.

    Iterating gives `(images, labels)`: float32 `(B, C, H, W)`, normalised as `(x / 255 - mean) / std`, and int64
    `(B,)`, on the device of `images`. Every image comes once a pass; the last batch may be smaller.

    A pass draws its order, crops and flips when it begins, on the CPU: the same seed gives the same batches on every
    device, and on a GPU no batch waits for the host. A run is resumed, and sees the batches that it would have seen,
    by a `state_dict()` taken between two passes and `batches(skip)` where the next one was begun.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), on the same device.
        mean, std: C numbers each, for values scaled to 0 .. 1.
        batch_size: images in a batch of this process.
        shuffle: a new order in every pass; without it the order is that of `images`.
        padding: zeros around an image, in pixels, that `crop` takes its window from.
        flip: `horizontal_flip` with probability 0.5.
        alternating: draw that for the first pass alone; from then on each image is flipped in every second one.
        seed: of the loader's own generator. The global one is neither read nor moved.
        channels_last: batches in `torch.channels_last` memory format.
        shard: (rank, size): of `size` processes with loaders of the same seed, each gives its part of batches of
            `size * batch_size` images. Of fewer than `size` images left over, shuffled passes drop all.

    Raises:
        ValueError: for a batch size below 1, and for more or fewer labels than images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        batch_size: int,
        shuffle: bool = False,
        padding: int = 0,
        flip: bool = False,
        alternating: bool = False,
        seed: int = 0,
        channels_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images, but {len(labels)} labels")
        self.images, self.labels, self.num_images = images, labels, len(images)  # of all shards together
        self.batch_size, self.shuffle, self.padding, self.flip = batch_size, shuffle, padding, flip
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = 0  # begun
        in_first = torch.randint(2, (len(images),), generator=torch.Generator().manual_seed(seed)).bool()
        self.flipped_in_first = in_first if alternating else None
        self.rank, self.num_shards = shard
        # (x / 255 - mean) / std as one multiplication and one addition
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.scale = (1 / (255 * std)).to(images.device, torch.float32)
        self.shift = (-mean / std).to(images.device, torch.float32)

    def __len__(self) -> int:
        return -(-len(self._shard(torch.empty(self.num_images, device="meta"))) // self.batch_size)

    def share(self, batch: int, images: int) -> float:
        """Return the weight of a shard with `images` of a batch in the mean over shards: 1 where all are as large."""
        global_batch = self.batch_size * self.num_shards
        return images * self.num_shards / min(global_batch, self.num_images - batch * global_batch)

    def _shard(self, values: Tensor) -> Tensor:
        """This process's part of one value per image: (N,) to about (N / num_shards,)."""
        if self.num_shards == 1:
            return values
        global_batch = self.batch_size * self.num_shards
        full = len(values) // global_batch
        rest = values[full * global_batch :]
        if self.shuffle and len(rest) < self.num_shards:
            rest = rest[:0]
        mine = values[: full * global_batch].view(full, self.num_shards, self.batch_size)[:, self.rank]
        return torch.cat([mine.flatten(), rest.tensor_split(self.num_shards)[self.rank]])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin a pass and yield its batches without the first `skip`."""
        n, device = self.num_images, self.images.device
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        top, left = torch.randint(2 * self.padding + 1, (2, n), generator=self.generator)
        flipped = torch.randint(2, (n,), generator=self.generator).bool()
        if self.flipped_in_first is not None:
            flipped = self.flipped_in_first[order] ^ bool(self.passes % 2)
        self.passes += 1

        per_block = max(1, BLOCK // (self.batch_size * self.images[0].numel()))  # batches
        draws = (self._shard(draw)[skip * self.batch_size :] for draw in (order, top, left, flipped))
        blocks = (draw.to(device).split(per_block * self.batch_size) for draw in draws)
        for index, top, left, flipped in zip(*blocks, strict=True):
            if len(index) == 0:  # all are skipped, or there are fewer than processes
                return
            images = self.images.index_select(0, index)
            if self.padding:
                images = crop(images, self.padding, top, left)
            if self.flip:
                images = horizontal_flip(images, flipped)
            images = images.float().mul_(self.scale).add_(self.shift)
            images = images.contiguous(memory_format=self.memory_format)
            labels = self.labels.index_select(0, index)
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return where the next pass stands in the loader's draws."""
        return {"generator": self.generator.get_state(), "passes": self.passes}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Let the next pass stand where that of the loader stood that gave `state`."""
        self.generator.set_state(state["generator"].cpu())
        self.passes = state.get("passes", 0)  # earlier checkpoints have none
