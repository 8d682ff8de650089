"""Streamed images: transforms compared with Pillow, workers, damaged files and signals."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from images.stream import StreamLoader
from tests.images.checks import refused, same

TRAINING = {"random_crop": True, "shuffle": True, "flip": True, "seed": 3}


def raw_loader(files, **options):
    """A loader whose normalised batches hold the pixel values; by default, this process decodes."""
    options = {"size": 8, "batch_size": 16, "workers": 0} | options
    return StreamLoader(*files, [0] * 3, [1 / 255] * 3, **options)


def one_image(tmp_path, image, size=8, **options):
    """One image as the loader returns it, uint8 (size, size, 3)."""
    image.save(tmp_path / "image.png")
    files = np.array([os.fsencode(tmp_path / "image.png")]), torch.zeros(1, dtype=torch.long)
    ((images, _),) = raw_loader(files, size=size, **options)
    return images[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def test_two_epochs_are_the_same_for_any_number_of_workers(photographs):
    expected = raw_loader(photographs, **TRAINING)
    expected = list(expected), list(expected)
    assert not same(*expected)
    loader, interrupted = (raw_loader(photographs, workers=2, **TRAINING) for _ in range(2))
    assert all(same(list(loader), batches) for batches in expected)
    next(interrupted.batches())  # counts as a whole pass
    assert same(list(interrupted), expected[1])


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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(photographs, tmp_path, workers):
    paths, labels = (part[:20] for part in photographs)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"not an image")
    paths = np.array([*paths[:10], os.fsencode(damaged), *paths[11:]])
    refused(lambda: list(raw_loader((paths, labels), workers=workers, **TRAINING)), "cannot read", damaged)


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
    assert same([first, *batches], list(raw_loader(photographs, batch_size=4, **TRAINING)))


def test_a_test_image_too_large_for_memory_is_named(tmp_path):
    image = Image.new("1", (60000, 1))
    path = tmp_path / "image.png"
    refused(lambda: one_image(tmp_path, image, 224), path, "60000x1")
    assert one_image(tmp_path, image, 224, random_crop=True).shape == (224, 224, 3)
