"""Streaming of a set of images larger than memory: worker processes decode the images in every pass, ahead of use.

    train = StreamLoader(paths, labels, mean, std, size=224, random_crop=True, shuffle=True, flip=True, batch_size=256)

Training images: `RandomResizedCrop(size)` and a flip. Test images: the shorter side is resized to `size * 256 / 224`,
and the central `size` x `size` pixels are cropped. All random draws for an image depend only on the seed, the pass and
the image: the batches are the same for any number of workers, and in a resumed pass.
"""

import atexit
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from images.info import DECODERS, DataError, decode, import_torchvision, one_line
from images.loader import Loader

MAX_PIXELS = 2**27  # limit for a resized test image, 400 MB
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)  # which needs its workers until it has saved


class StreamLoader(Loader):
    """Batches of a set of images on disk.

    Args:
        paths: paths (N,) of a `Listing`.
        labels, mean, std, options: arguments of `Loader`.
        size: height and width of the images in a batch.
        random_crop: use `RandomResizedCrop(size)`; otherwise the center of each image.
        workers: number of processes that decode; 0: this process decodes. Default: `DECODERS`

    Raises:
        DataError: if torchvision cannot be imported.
    """

    def __init__(
        self,
        paths: np.ndarray,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        size: int,
        random_crop: bool = False,
        workers: int | None = None,
        **options: Any,
    ):
        super().__init__(labels, mean, std, **options)
        self.workers = DECODERS if workers is None else workers
        self.begun = False  # True once the workers run
        self.requests = []  # of the current pass: for each batch int64 (B, 3): index, flip and seed
        self.loader = DataLoader(
            _Decoded(paths, size, random_crop),
            batch_size=None,  # each request is a whole batch
            sampler=self.requests,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=labels.is_cuda,
            generator=torch.Generator(),  # otherwise DataLoader draws from the global generator in every pass
        )

    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin a pass and yield its batches, except the first `skip`.

        Raises:
            DataError: if an image cannot be decoded, with the name of its file, or if a worker dies.
        """
        order = self._draw_order()
        flipped = self._draw_flips(order) & self.flip
        seeds = torch.randint(2**32, (self.num_images,), generator=self.generator)  # largest range of CPU seeds
        draws = torch.stack([self._shard(draw) for draw in (order, flipped.long(), seeds)], dim=1)
        requests = draws[skip * self.batch_size :].split(self.batch_size)
        if len(requests[0]) == 0:  # all batches are skipped, or there are fewer images than processes
            return
        self.requests[:] = [request.numpy() for request in requests]
        for images, request in zip(self._decoded(), requests, strict=True):
            index = request[:, 0].to(self.labels.device)
            yield self._normalise(images.to(self.labels.device, non_blocking=True)), self.labels[index]

    def _decoded(self):
        """The images of each request, uint8 (B, 3, size, size)."""
        try:
            for images in self._begin():
                if isinstance(images, DataError):
                    raise images
                yield images
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            reason = f"a worker that decodes images has died ({one_line(error)})"
            raise DataError(f"{reason}: give it more memory or shared memory, or use fewer --workers") from error

    def _begin(self):
        """DataLoader's iterator. The workers end together with this process and print no messages."""
        if self.begun or self.workers == 0:
            return iter(self.loader)
        on_child = signal.getsignal(signal.SIGCHLD)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)  # workers inherit this mask
        try:
            batches = iter(self.loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread():
            # DataLoader's handler raises an error at any point of the program if a worker dies. Without the handler,
            # the wait for the next batch raises the error.
            signal.signal(signal.SIGCHLD, on_child or signal.SIG_DFL)
        # The finalizer keeps `batches` until the loader is gone. Otherwise the garbage collector closes the queues
        # first, and DataLoader waits ten seconds for each worker.
        atexit.register(weakref.finalize(self, _end_workers, batches))
        self.begun = True
        return batches


def _end_workers(batches):
    """Shut down the workers, and kill those that wait for a lock which a killed worker held; they ignore SIGTERM."""
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()


class _Decoded(Dataset):
    """The images of a request, uint8 (B, 3, size, size) in channels_last format, or a DataError for a damaged image."""

    def __init__(self, paths, size, random_crop):
        v2 = import_torchvision("transforms.v2", "streaming images from disk", "--in-memory yes")
        self.paths, self.random_crop = paths, random_crop
        self.shorter_side = round(size * 256 / 224)  # of a test image before its center is cropped
        middle = v2.Compose([v2.Resize(self.shorter_side), v2.CenterCrop(size)])
        self.crop = v2.RandomResizedCrop(size) if random_crop else middle

    def __getitem__(self, request):
        try:
            with torch.random.fork_rng(devices=[]):
                pixels = [self._image(*draws) for draws in request.tolist()]
        except DataError as error:  # an error raised here would reach the parent as a traceback
            return error
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)

    def _image(self, index, flipped, seed):
        """An image as uint8 (size, size, 3)."""
        if self.random_crop:
            torch.default_generator.manual_seed(seed)  # torchvision draws from this generator
        pixels = decode(self.paths[index], self._cropped)
        return pixels[:, ::-1] if flipped else pixels

    def _cropped(self, image):
        pixels = self.shorter_side**2 * max(image.size) / min(image.size)
        if not self.random_crop and pixels > MAX_PIXELS:
            width, height = image.size
            raise ValueError(f"{width}x{height} pixels are too many once the shorter side is {self.shorter_side}")
        return np.asarray(self.crop(image))
