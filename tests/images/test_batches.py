"""Crops, flips and normalisation of images in memory, compared with plain numpy."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from images import batches
from images.batches import BatchLoader
from tests.images.checks import same

AUGMENTED = {"shuffle": True, "padding": 2, "flip": True}


def random_images(count, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def outcomes(image, padding):
    """Every crop and flipped crop of one image, made with numpy: its bytes -> (top, left, flipped)."""
    _, height, width = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    result = {}
    for top, left in itertools.product(range(2 * padding + 1), repeat=2):
        window = padded[:, top : top + height, left : left + width]
        result[window.tobytes()] = top, left, False
        result[window[:, :, ::-1].tobytes()] = top, left, True
    return result


def raw_loader(images, **options):
    """A loader whose normalised batches hold the pixel values."""
    channels = images.shape[1]
    options = {"batch_size": 50} | options
    return BatchLoader(images, torch.arange(len(images)), [0] * channels, [1 / 255] * channels, **options)


def pixels(loader):
    """The images of a pass, uint8."""
    return torch.cat([images for images, _ in loader]).round().to(torch.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_all_outcomes_are_equally_likely(padding, flip):
    # Equal shares of all (top, left, flip) triples: each is uniform, and they are independent of one another.
    kinds = (2 * padding + 1) ** 2 * (2 if flip else 1)
    image, draws = random_images(1, height=5)[0], 400 * kinds
    results = pixels(raw_loader(image.expand(draws, -1, -1, -1), padding=padding, flip=flip, seed=3))
    names = outcomes(image, padding)
    counts = Counter(names[result.numpy().tobytes()] for result in results)
    assert len(counts) == kinds
    assert {flipped for _, _, flipped in counts} == ({True, False} if flip else {False})
    degrees, chi_square = kinds - 1, sum((count - 400) ** 2 / 400 for count in counts.values())
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5 + 1e-9


def test_batches_are_normalised_and_padding_is_black():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = random_images(300)
    (result, labels), *_ = BatchLoader(images, torch.arange(300), mean, std, batch_size=300)
    exact = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert result.dtype == torch.float32 and labels.dtype == torch.int64
    assert np.abs(result.numpy() - exact).max() < 1e-6

    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    (result, _), *_ = BatchLoader(white, torch.arange(200), mean, std, batch_size=200, padding=2)
    for channel in range(3):
        black, bright = -mean[channel] / std[channel], (1 - mean[channel]) / std[channel]
        values = result[:, channel].unique()
        torch.testing.assert_close(values, torch.tensor([black, bright]), rtol=1e-5, atol=1e-5)


def test_channels_last_changes_the_memory_format_only():
    images = random_images(90)
    plain, other = (raw_loader(images, **AUGMENTED) for _ in range(2))
    other.memory_format = torch.channels_last
    for (a, _), (b, _) in zip(plain, other, strict=True):
        assert torch.equal(a, b) and a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)


def test_batches_do_not_depend_on_the_size_of_a_block(monkeypatch):
    images, options = random_images(200), AUGMENTED | {"batch_size": 16}
    one_block = list(raw_loader(images, **options))
    monkeypatch.setattr(batches, "BLOCK", 1)
    assert same(one_block, list(raw_loader(images, **options)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_on_a_gpu_are_equal_and_do_not_wait_for_the_host():
    images, labels, norm = random_images(2000, 3, 32, 32), torch.arange(2000), ([0.5] * 3, [0.25] * 3)
    host = BatchLoader(images, labels, *norm, batch_size=50, **AUGMENTED)
    batches = iter(BatchLoader(images.cuda(), labels.cuda(), *norm, batch_size=50, **AUGMENTED))
    results = [next(batches)]  # the draws of the pass are copied here
    torch.cuda.set_sync_debug_mode("error")
    try:
        results += batches
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (a, a_labels), (b, b_labels) in zip(host, results, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-6)
        assert torch.equal(a_labels, b_labels.cpu())
