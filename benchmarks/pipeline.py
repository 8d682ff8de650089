"""Speed of the input pipeline, in images per second: augmented, normalised float batches, in alternating passes.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --device cuda --images 50000
    python -m benchmarks.pipeline --streamed --cores 1 --images 2000

Contenders: `ours` in both memory formats (dataloaders.BatchLoader); `indexing`, a simple version that crops each image
with slices; and the published pipeline with PIL in DataLoader workers. All crop with padding 4, flip and normalise
3x32x32 images. The results are in results/pipeline_<device>.json.

With --streamed, the contenders decode JPEG files of 500x375 to 224x224: `ours` (dataloaders.StreamLoader) and
torchvision's ImageFolder with transforms.v2, both with RandomResizedCrop and a flip. All processes of a contender share
--cores cores, with one worker for each core. The results are in results/stream_<device>.json.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.measuring import command_line
from dataloaders import BatchLoader, StreamLoader, describe
from images.tree import list_tree
from linearconv_variants import positive_int
from training.checkpoints import write_json
from training.report import ROOT, origin

BATCH = 50
ROUNDS = 5  # measured passes of each contender
NORM = describe("cifar10").mean, describe("cifar10").std
Batches = Iterator[tuple[Tensor, Tensor]]  # images (B, 3, H, W) and labels (B,)


def transform_with_pil(pairs: Sequence[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch; each image is transformed with PIL, as in the published code."""
    augmentation = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
    transform = transforms.Compose([*augmentation, transforms.ToTensor(), transforms.Normalize(*NORM)])
    images = torch.stack([transform(Image.fromarray(image)) for image, _ in pairs])
    return images, torch.tensor([label for _, label in pairs])


def indexing(images: Tensor, labels: Tensor) -> Batches:
    """Yield batches; a loop crops each image from a padded copy of the set."""
    padded = F.pad(images, (4, 4, 4, 4))
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in NORM)
    for index in torch.randperm(len(images)).split(BATCH):
        tops, lefts = torch.randint(9, (2, len(index))).tolist()
        crops = [padded[i, :, y : y + 32, x : x + 32] for i, y, x in zip(index.tolist(), tops, lefts, strict=True)]
        batch = torch.stack(crops).float().div_(255)
        flipped = (torch.rand(len(index), 1, 1, 1) < 0.5).to(batch.device)
        yield torch.where(flipped, batch.flip(3), batch).sub_(mean).div_(std), labels[index]


def passes(count: int, device: str) -> dict[str, Callable[[], Batches]]:
    """Return {contender: function that begins one pass} over `count` random images in memory."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.arange(count, device=device) % 10
    options = {"batch_size": BATCH, "shuffle": True, "padding": 4, "flip": True}
    contiguous, channels_last = (BatchLoader(images, labels, *NORM, **options) for _ in range(2))
    channels_last.memory_format = torch.channels_last
    pairs = list(zip(images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), labels.tolist(), strict=True))
    workers = {"num_workers": 2, "persistent_workers": True}
    published = DataLoader(pairs, BATCH, shuffle=True, collate_fn=transform_with_pil, **workers)
    return {
        "ours, channels_last": partial(iter, channels_last),
        "ours, contiguous": partial(iter, contiguous),
        "indexing": partial(indexing, images, labels),
        "published (PIL, two workers)": partial(iter, published),
    }


def write_photographs(root: Path, count: int) -> None:
    """Write an imagefolder of ten classes with JPEG files of 500x375: smooth shapes with slight noise."""
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
    (paths, labels), _ = list_tree(root)
    augmented = {"batch_size": BATCH, "shuffle": True, "random_crop": True, "flip": True}
    ours = StreamLoader(paths, labels.to(device), *NORM, size=224, workers=workers, **augmented)
    ours.memory_format = torch.channels_last
    augmentation = v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()
    to_floats = v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORM)
    folder = ImageFolder(root / "train", v2.Compose([*augmentation, *to_floats]))
    options = {"num_workers": workers, "persistent_workers": True, "pin_memory": device == "cuda"}
    theirs = DataLoader(folder, BATCH, shuffle=True, **options)
    return {"ours, streamed": partial(iter, ours), "torchvision, ImageFolder": partial(iter, theirs)}


def measure(contenders: dict[str, Callable[[], Batches]], device: str) -> list[dict]:
    """Measure passes of the contenders in turns; print and return their speeds."""
    speeds = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, begin in contenders.items():
            start = time.perf_counter()
            seen = sum(len(images.to(device, non_blocking=True)) for images, _ in begin())
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn is a warm-up, and starts the workers
                speeds[name].append(seen / (time.perf_counter() - start))
    rows = []
    for name, values in speeds.items():
        median, least, most = statistics.median(values), min(values), max(values)
        rows.append({"pipeline": name, "images_per_second": median, "least": least, "most": most})
        print(f"{name}: {median:,.0f} images/s ({least:,.0f} to {most:,.0f})")
    return rows


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=positive_int, default=20_000, help="in a pass (default: 20000)")
    parser.add_argument("--streamed", action="store_true", help="images from files, at 224x224")
    parser.add_argument("--cores", type=positive_int, default=1, help="for --streamed (default: 1)")
    parser.add_argument("--output", type=Path, help="default: results/pipeline_<device>.json, stream_<device>.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    name, record = f"pipeline_{options.device}.json", {"images": options.images, "batch": BATCH}
    with tempfile.TemporaryDirectory() as folder:
        if options.streamed:
            name, record["cores"] = f"stream_{options.device}.json", options.cores
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
            torch.set_num_threads(options.cores)
            write_photographs(Path(folder), options.images)
            contenders = streamed_passes(Path(folder), options.cores, options.device)
        else:
            contenders = passes(options.images, options.device)
        rows = measure(contenders, options.device)
    write_json(options.output or ROOT / "results" / name, {"origin": origin(options.device), **record, "rows": rows})


if __name__ == "__main__":
    main()
