"""Streamed images: order and draws, transforms compared with Pillow, workers, shards, damaged files and signals."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from images.stream import StreamLoader
from tests.images.refusals import refused

MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """300 images of odd sizes and all modes, as (paths, labels)."""
    folder, rng, paths = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0), []
    for i in range(300):
        height, width = rng.integers(5, 40, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(MODES[i % 7])
        paths.append(os.fsencode(folder / f"{i:03d}.{'tif' if image.mode == 'CMYK' else 'png'}"))
        image.save(os.fsdecode(paths[-1]))
    return np.array(paths), torch.arange(300)


TRAINING = {"random_crop": True, "shuffle": True, "flip": True, "seed": 3}


def raw_loader(files, **options):
    """A loader whose normalised batches hold the pixel values; by default, this process decodes."""
    options = {"size": 8, "batch_size": 16, "workers": 0} | options
    return StreamLoader(*files, [0] * 3, [1 / 255] * 3, **options)


def one_pass(loader, skip=0):
    return list(loader.batches(skip))


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(one, other) for pair in zip(ours, theirs, strict=True) for one, other in zip(*pair, strict=True)
    )


def one_image(tmp_path, image, size=8, **options):
    """One image as the loader returns it, uint8 (size, size, 3)."""
    image.save(tmp_path / "image.png")
    files = np.array([os.fsencode(tmp_path / "image.png")]), torch.zeros(1, dtype=torch.long)
    ((images, _),) = raw_loader(files, size=size, **options)
    return images[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


# ---- order and draws ---------------------------------------------------------------------------------------


def test_a_pass_gives_every_image_once_with_its_label(photographs):
    loader = raw_loader(photographs, **TRAINING)
    batches = one_pass(loader)
    assert [len(labels) for _, labels in batches] == [16] * 18 + [12] and len(loader) == 19
    assert all(images.shape == (len(labels), 3, 8, 8) and images.dtype == torch.float32 for images, labels in batches)
    order = torch.cat([labels for _, labels in batches])
    assert torch.equal(order.sort().values, torch.arange(300)) and not torch.equal(order, torch.arange(300))


def test_two_epochs_are_the_same_for_any_number_of_workers(photographs):
    expected = raw_loader(photographs, **TRAINING)
    expected = one_pass(expected), one_pass(expected)
    assert not same(*expected)
    loader, interrupted = (raw_loader(photographs, workers=2, **TRAINING) for _ in range(2))
    assert all(same(one_pass(loader), batches) for batches in expected)
    next(interrupted.batches())  # counts as a whole pass
    assert same(one_pass(interrupted), expected[1])


def test_a_pass_can_begin_at_any_batch(photographs):
    loader = raw_loader(photographs, **TRAINING)
    state = loader.state_dict()
    expected = one_pass(loader)
    for skip, workers in ((1, 0), (7, 1), (19, 0)):
        resumed = raw_loader(photographs, workers=workers, **TRAINING | {"seed": 99})
        resumed.load_state_dict(state)
        assert same(one_pass(resumed, skip), expected[skip:])
        assert torch.equal(resumed.generator.get_state(), loader.generator.get_state())


def test_the_global_generator_is_neither_read_nor_changed(photographs):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = one_pass(raw_loader(photographs, workers=1, **TRAINING), 15)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert same(first, one_pass(raw_loader(photographs, **TRAINING), 15))


def test_the_shards_of_a_batch_are_the_batch(photographs):
    whole = one_pass(raw_loader(photographs, batch_size=21, **TRAINING))
    shards = [one_pass(raw_loader(photographs, batch_size=7, shard=(rank, 3), **TRAINING)) for rank in range(3)]
    merged = [[torch.cat(parts) for parts in zip(*batch, strict=True)] for batch in zip(*shards, strict=True)]
    assert same(merged, whole)
    files = [part[:13] for part in photographs]  # in a test, every image comes once
    labels = [labels for rank in range(4) for _, labels in raw_loader(files, batch_size=2, shard=(rank, 4))]
    assert sorted(torch.cat(labels).tolist()) == list(range(13))


def test_alternating_flips_flip_every_image_in_every_second_pass(tmp_path):
    slope = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))  # brighter to the right
    slope.save(tmp_path / "slope.png")
    files = np.array([os.fsencode(tmp_path / "slope.png")] * 20), torch.arange(20)
    loader = raw_loader(files, batch_size=20, alternating=True, **TRAINING)
    turned = []
    for _ in range(4):
        ((images, labels),) = loader
        turned.append((images[..., 0] > images[..., -1]).all(2).all(1)[labels.argsort()])
    assert torch.equal(turned[0], ~turned[1]) and torch.equal(turned[0], turned[2])
    assert torch.equal(turned[1], turned[3]) and 3 < turned[0].sum() < 17


# ---- transforms ---------------------------------------------------------------------------------------------


def test_test_images_are_resized_and_cropped_to_their_center(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    resized = image.resize((48, 32), Image.Resampling.BILINEAR)  # the shorter side to 28 * 256 / 224
    assert (one_image(tmp_path, image, 28) == np.asarray(resized.crop((10, 2, 38, 30)))).all()


def test_training_images_are_crops_of_random_size_and_place_and_half_of_them_are_flipped(tmp_path):
    slopes = np.zeros((64, 64, 3), np.uint8)
    slopes[..., 0], slopes[..., 1] = np.arange(64) * 4, np.arange(64)[:, None] * 4  # red to the right, green down
    Image.fromarray(slopes).save(tmp_path / "slopes.png")
    files = np.array([os.fsencode(tmp_path / "slopes.png")] * 400), torch.arange(400)
    ((images, _),) = raw_loader(files, size=16, batch_size=400, **TRAINING)
    red, green = images[:, 0].mean(1), images[:, 1].mean(2)  # along the columns, along the rows
    flipped = red[:, 0] > red[:, -1]
    assert 160 < flipped.sum() < 240 and (green[:, 0] < green[:, -1]).all()
    width, height = ((slope.amax(1) - slope.amin(1)) / 4 * 16 / 15 / 64 for slope in (red, green))
    area = width * height  # as a share, drawn evenly from 0.08 to 1, as far as that fits
    assert 0.06 < area.min() < 0.15 and 0.85 < area.max() < 1.1 and 0.45 < area.mean() < 0.6
    assert 0.7 < (width / height).min() and (width / height).max() < 1.43


# ---- errors and signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(photographs, tmp_path, workers):
    paths, labels = (part[:20] for part in photographs)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"not an image")
    paths = np.array([*paths[:10], os.fsencode(damaged), *paths[11:]])
    refused(lambda: one_pass(raw_loader((paths, labels), workers=workers, **TRAINING)), "cannot read", damaged)


def begun(loader):
    """A pass, its first batch, and the workers that it has started."""
    before, batches = set(multiprocessing.active_children()), loader.batches()
    return batches, next(batches), set(multiprocessing.active_children()) - before


def test_a_killed_worker_ends_the_pass_with_one_line(photographs):
    batches, _, (worker,) = begun(raw_loader(photographs, workers=1, batch_size=4, **TRAINING))
    worker.kill()
    worker.join()
    refused(lambda: list(batches), "has died", "--workers")


def test_workers_ignore_signals_to_all_processes(photographs):
    batches, first, workers = begun(raw_loader(photographs, workers=2, batch_size=4, **TRAINING))
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert len(workers) == 2
    assert same([first, *batches], one_pass(raw_loader(photographs, batch_size=4, **TRAINING)))


def test_a_test_image_too_large_for_memory_is_named(tmp_path):
    image = Image.new("1", (60000, 1))
    path = tmp_path / "image.png"
    refused(lambda: one_image(tmp_path, image, 224), path, "60000x1")
    assert one_image(tmp_path, image, 224, random_crop=True).shape == (224, 224, 3)
