"""Speed of the input pipeline, in images per second: augmented, normalised float batches, in alternating passes.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --device cuda --images 50000
    python -m benchmarks.pipeline --streamed --cores 1 --images 2000

Contenders: `ours` in both memory formats (dataloaders.BatchLoader, which builds blocks of batches from memory);
`indexing`, a simple version that crops each image with slices; and, if torchvision is installed, the published pipeline
with torchvision's PIL transforms in DataLoader workers. All contenders crop with padding 4, flip and normalise 3x32x32
images. The results are in results/pipeline_<device>.json.

With --streamed, the contenders decode JPEG files of 500x375 to 224x224: `ours` (dataloaders.StreamLoader) and
torchvision's ImageFolder with transforms.v2, both with RandomResizedCrop and a flip. All processes of a contender share
--cores cores, with one worker for each core. The results are in results/stream_<device>.json.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import command_line
from dataloaders import BatchLoader, StreamLoader, describe
from images.tree import list_tree
from linearconv_variants import positive_int
from training.checkpoints import write_json
from training.report import ROOT, origin

BATCH = 50
WORKERS = 2


class PublishedDataset(Dataset):
    """The data set of the published code, which transforms each image with PIL."""

    def __init__(self, images: Tensor, labels: Tensor, mean: tuple, std: tuple) -> None:
        from torchvision import transforms

        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


Batches = Iterator[tuple[Tensor, Tensor]]  # images (B, 3, 32, 32) and labels (B,)


def indexing(images: Tensor, labels: Tensor, mean: tuple, std: tuple) -> Batches:
    """Yield batches; a loop crops each image from a padded copy of the set."""
    padded = F.pad(images, (4, 4, 4, 4))
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    for index in torch.randperm(len(images)).split(BATCH):
        tops, lefts = torch.randint(9, (2, len(index))).tolist()
        crops = [padded[i, :, y : y + 32, x : x + 32] for i, y, x in zip(index.tolist(), tops, lefts, strict=True)]
        batch = torch.stack(crops).float().div_(255)
        flipped = (torch.rand(len(index), 1, 1, 1) < 0.5).to(batch.device)
        yield torch.where(flipped, batch.flip(3), batch).sub_(mean).div_(std), labels[index]


def passes(images: Tensor, labels: Tensor) -> dict[str, Callable[[], Batches]]:
    """Return {contender: function that begins one pass} over uint8 images (N, 3, 32, 32) and labels (N,)."""
    info = describe("cifar10")
    made = {}
    augmented = {"batch_size": BATCH, "shuffle": True, "padding": 4, "flip": True}
    for name, channels_last in (("ours, channels_last", True), ("ours, contiguous", False)):
        loader = BatchLoader(images, labels, info.mean, info.std, channels_last=channels_last, **augmented)
        made[name] = loader.__iter__
    made["indexing"] = lambda: indexing(images, labels, info.mean, info.std)
    try:
        published = PublishedDataset(images, labels, info.mean, info.std)
    except (ImportError, RuntimeError) as error:
        print(f"without the published pipeline: torchvision cannot be imported ({str(error).splitlines()[0]})")
    else:
        loader = DataLoader(published, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
        made["published (PIL, two workers)"] = loader.__iter__
    return made


def write_photographs(root: Path, count: int) -> None:
    """Write an imagefolder of ten classes with JPEG files of 500x375: smooth shapes with slight noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(shapes) + rng.normal(0, 8, (375, 500, 3))
        for split in ("train", "test") if i < 10 else ("train",):
            folder = root / split / str(i % 10)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def streamed_passes(root: Path, workers: int, device: str) -> dict[str, Callable[[], Batches]]:
    """Return {contender: function that begins one pass} over the training images of an imagefolder."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    norm = describe("cifar10").mean, describe("cifar10").std
    (paths, labels), _ = list_tree(root)
    augmented = {"batch_size": BATCH, "shuffle": True, "random_crop": True, "flip": True, "channels_last": True}
    ours = StreamLoader(paths, labels.to(device), *norm, size=224, workers=workers, **augmented)
    steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    to_floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*norm)]
    folder = ImageFolder(root / "train", v2.Compose([*steps, *to_floats]))
    pinned = {"pin_memory": device == "cuda", "persistent_workers": True}
    theirs = DataLoader(folder, BATCH, shuffle=True, num_workers=workers, **pinned)

    def on_device() -> Batches:
        return ((images.to(device, non_blocking=True), labels.to(device)) for images, labels in theirs)

    return {"ours, streamed": ours.__iter__, "torchvision, ImageFolder": on_device}


def images_per_second(one_pass: Callable[[], Batches], device: str) -> float:
    """Return the speed of one pass. The time includes the start of workers only in the first pass."""
    start, seen = time.perf_counter(), 0
    for images, _ in one_pass():
        assert images.dtype == torch.float32
        seen += len(images)
    if device == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=positive_int, default=20_000, help="in a pass (default: 20000)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="passes of each contender (default: 5)")
    parser.add_argument("--streamed", action="store_true", help="images from files, at 224x224")
    parser.add_argument("--cores", type=positive_int, default=1, help="for --streamed (default: 1)")
    parser.add_argument("--output", type=Path, help="default: results/pipeline_<device>.json, stream_<device>.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.streamed:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
        torch.set_num_threads(options.cores)
        with tempfile.TemporaryDirectory() as folder:
            write_photographs(Path(folder), options.images)
            made = streamed_passes(Path(folder), options.cores, options.device)
            rows = measure(made, options.rounds, options.device)
    else:
        images = torch.randint(256, (options.images, 3, 32, 32), dtype=torch.uint8, device=options.device)
        made = passes(images, torch.arange(options.images, device=options.device) % 10)
        rows = measure(made, options.rounds, options.device)
    record = {"origin": origin(options.device), "images": options.images, "batch": BATCH, "rows": rows}
    if options.streamed:
        record["cores"] = options.cores
    name = "stream" if options.streamed else "pipeline"
    write_json(options.output or ROOT / "results" / f"{name}_{options.device}.json", record)


def measure(made: dict[str, Callable[[], Batches]], rounds: int, device: str) -> list[dict]:
    """Measure `rounds` passes of each contender in turns; print and return their speeds."""
    speeds = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, one_pass in made.items():
            speed = images_per_second(one_pass, device)
            if turn:  # the first turn is a warm-up
                speeds[name].append(speed)
    rows = [
        {"pipeline": name, "images_per_second": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in speeds.items()
    ]
    for row in rows:
        print("{pipeline}: {images_per_second:,.0f} images/s ({least:,.0f} to {most:,.0f})".format(**row))
    return rows


if __name__ == "__main__":
    main()
