"""The base class of all loaders of images: the order of each pass, the shard of each batch, and the state to resume.

The subclass in `batches.py` has its images in memory, the subclass in `stream.py` on disk.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Loader(ABC):
    """Batches of a set of images, optionally shuffled and augmented.

    Iteration yields `(images, labels)`: float32 `(B, C, H, W)`, normalised as `(x / 255 - mean) / std`, and int64
    `(B,)`, on the device of `labels`. A pass contains every image once; the last batch may be smaller. Its order and
    augmentation are drawn at its start, on the CPU. To resume a pass bit for bit, load the `state_dict()` from before
    this pass, and continue with `batches(skip)`.

    Args:
        labels: int64 (N,), one for each image, on the device for the batches.
        mean, std: C numbers each, for values scaled to 0 .. 1.
        batch_size: number of images in a batch of this process.
        shuffle: draw a new order in every pass; otherwise the order is the order of `labels`.
        flip: flip images left to right with probability 0.5.
        alternating: draw the flips of the first pass only; afterwards each image is flipped in every second pass.
        seed: seed of the loader's own generator. The global generator is neither read nor changed.
        shard: (rank, size). Each of `size` processes with loaders of the same seed returns its part of batches of
            `size * batch_size` images. If fewer than `size` images remain, shuffled passes drop these images.

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
        shard: tuple[int, int] = (0, 1),
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.labels, self.num_images = labels, len(labels)  # number of images in all shards together
        self.batch_size, self.shuffle, self.flip = batch_size, shuffle, flip
        self.memory_format = torch.contiguous_format  # of the batches; may be set
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = 0  # number of passes that have begun
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
        """Return the weight of a shard with `images` of a batch in the mean over shards: 1 for shards of equal size."""
        global_batch = self.batch_size * self.num_shards
        return images * self.num_shards / min(global_batch, self.num_images - batch * global_batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    @abstractmethod
    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin a pass and yield its batches, except the first `skip`."""

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the state before the next pass."""
        return {"generator": self.generator.get_state(), "passes": self.passes}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Load a `state_dict()`: the next pass has the draws of the saved loader's next pass."""
        self.generator.set_state(state["generator"].cpu())
        self.passes = state.get("passes", 0)  # earlier checkpoints lack this entry

    def _shard(self, values):
        """This process's part of one value per image: (N,) to about (N / num_shards,)."""
        global_batch = self.batch_size * self.num_shards
        full = len(values) // global_batch
        rest = values[full * global_batch :]
        if self.shuffle and len(rest) < self.num_shards:
            rest = rest[:0]
        mine = values[: full * global_batch].view(full, self.num_shards, self.batch_size)[:, self.rank]
        return torch.cat([mine.flatten(), rest.tensor_split(self.num_shards)[self.rank]])

    def _draw_order(self):
        """The order of the images in a new pass, (N,)."""
        n = self.num_images
        return torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)

    def _draw_flips(self, order):
        """The images of the pass that are flipped, bool (N,) in this order; increments `passes`."""
        flipped = torch.randint(2, (self.num_images,), generator=self.generator).bool()
        if self.flipped_in_first is not None:
            flipped = self.flipped_in_first[order] ^ bool(self.passes % 2)
        self.passes += 1
        return flipped

    def _normalise(self, images):
        """Normalised float32 images from uint8 images (B, C, H, W) on the loader's device."""
        images = images.float().mul_(self.scale).add_(self.shift)
        return images.contiguous(memory_format=self.memory_format)
