"""What every loader of images has: an order for each pass, a shard of each batch, and a place to go on from.

The loaders themselves differ in where their images are: `batches.py` has them in memory, `stream.py` on disk.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Loader(ABC):
    """Batches of a set of images, shuffled and augmented if wanted.

    Iterating gives `(images, labels)`: float32 `(B, C, H, W)`, normalised as `(x / 255 - mean) / std`, and int64
    `(B,)`, on the device of `labels`. Every image comes once a pass; the last batch may be smaller.

    A pass draws its order and its augmentation when it begins, on the CPU: the same seed gives the same batches on
    every device. A run is resumed, and sees the batches that it would have seen, by a `state_dict()` taken between two
    passes and `batches(skip)` where the next one was begun.

    Args:
        labels: int64 (N,), one for each image.
        mean, std: C numbers each, for values scaled to 0 .. 1.
        batch_size: images in a batch of this process.
        shuffle: a new order in every pass; without it the order is that of `labels`.
        flip: images left to right with probability 0.5.
        alternating: draw that for the first pass alone; from then on each image is flipped in every second one.
        seed: of the loader's own generator. The global one is neither read nor moved.
        channels_last: batches in `torch.channels_last` memory format.
        shard: (rank, size): of `size` processes with loaders of the same seed, each gives its part of batches of
            `size * batch_size` images. Of fewer than `size` images left over, shuffled passes drop all.

    Raises:
        ValueError: for a batch size below 1.
    """

    def __init__(
        self,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        batch_size: int,
        shuffle: bool = False,
        flip: bool = False,
        alternating: bool = False,
        seed: int = 0,
        channels_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.labels, self.num_images = labels, len(labels)  # of all shards together
        self.batch_size, self.shuffle, self.flip = batch_size, shuffle, flip
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = 0  # begun
        in_first = torch.randint(2, (len(labels),), generator=torch.Generator().manual_seed(seed)).bool()
        self.flipped_in_first = in_first if alternating else None
        self.rank, self.num_shards = shard
        # (x / 255 - mean) / std as one multiplication and one addition
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.scale = (1 / (255 * std)).to(labels.device, torch.float32)
        self.shift = (-mean / std).to(labels.device, torch.float32)

    def __len__(self) -> int:
        return -(-len(self._shard(torch.empty(self.num_images, device="meta"))) // self.batch_size)

    def share(self, batch: int, images: int) -> float:
        """Return the weight of a shard with `images` of a batch in the mean over shards: 1 where all are as large."""
        global_batch = self.batch_size * self.num_shards
        return images * self.num_shards / min(global_batch, self.num_images - batch * global_batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    @abstractmethod
    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin a pass and yield its batches without the first `skip`."""

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return where the next pass stands in the loader's draws."""
        return {"generator": self.generator.get_state(), "passes": self.passes}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Let the next pass stand where that of the loader stood that gave `state`."""
        self.generator.set_state(state["generator"].cpu())
        self.passes = state.get("passes", 0)  # earlier checkpoints have none

    def _shard(self, values):
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

    def _draw_order(self):
        """The images of a pass that begins, (N,)."""
        n = self.num_images
        return torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)

    def _draw_flips(self, order):
        """Which images of the pass are flipped, (N,) in this order; the pass is counted."""
        flipped = torch.randint(2, (self.num_images,), generator=self.generator).bool()
        if self.flipped_in_first is not None:
            flipped = self.flipped_in_first[order] ^ bool(self.passes % 2)
        self.passes += 1
        return flipped

    def _normalise(self, images):
        """uint8 images (B, C, H, W) on the loader's device as float32."""
        images = images.float().mul_(self.scale).add_(self.shift)
        return images.contiguous(memory_format=self.memory_format)
