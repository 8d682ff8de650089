"""Crops, flips and batches, against plain numpy and against torchvision's own transforms."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import transforms

from images import batches
from images.batches import BatchLoader, crop


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
    """One pass as uint8 images and labels."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images).round().to(torch.uint8), torch.cat(labels)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


# ---- crop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 1), ((1, 5, 7), 3), ((2, 7, 4), 2)])
def test_crop_returns_the_window_of_the_padded_image(shape, padding):
    offsets = list(itertools.product(range(2 * padding + 1), repeat=2))
    images = random_images(len(offsets), *shape)
    top, left = torch.tensor(offsets).T
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    for result, image, (y, x) in zip(crop(images, padding, top, left).numpy(), padded, offsets, strict=True):
        assert (result == image[:, y : y + shape[1], x : x + shape[2]]).all()


# ---- distribution of the augmentation ------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_all_outcomes_are_equally_likely(padding, flip):
    # Equal shares of all (top, left, flip) triples: each is uniform, and they are independent of one another.
    kinds = (2 * padding + 1) ** 2 * (2 if flip else 1)
    image, draws = random_images(1)[0], 400 * kinds
    results, _ = pixels(raw_loader(image.expand(draws, -1, -1, -1), padding=padding, flip=flip, seed=3))
    names = outcomes(image, padding)
    counts = Counter(names[result.numpy().tobytes()] for result in results)
    assert len(counts) == kinds
    assert {flipped for _, _, flipped in counts} == ({True, False} if flip else {False})
    degrees = kinds - 1
    assert chi_square(counts.values(), 400) < degrees + 4 * (2 * degrees) ** 0.5 + 1e-9


def test_the_distribution_is_that_of_torchvision():
    image, draws = random_images(1)[0], 3600
    theirs = transforms.Compose([transforms.RandomCrop(8, padding=1), transforms.RandomHorizontalFlip(0.5)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = Counter(theirs(image).numpy().tobytes() for _ in range(draws))
    results, _ = pixels(raw_loader(image.expand(draws, -1, -1, -1), padding=1, flip=True, seed=5))
    counts = Counter(result.numpy().tobytes() for result in results)
    assert counts.keys() == expected.keys() == outcomes(image, 1).keys()
    # two samples of equal size: sum of (a - b)^2 / (a + b) over the 18 outcomes has 17 degrees of freedom
    assert sum((counts[kind] - expected[kind]) ** 2 / (counts[kind] + expected[kind]) for kind in counts) < 45


# ---- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "shuffle"), [(1, False), (50, True), (110, False), (1000, True)])
def test_a_pass_gives_every_image_once_with_its_label(batch_size, shuffle):
    images = random_images(110)
    loader = raw_loader(images, batch_size=batch_size, shuffle=shuffle)
    sizes = [len(labels) for _, labels in loader]
    assert len(loader) == len(sizes) and loader.num_images == sum(sizes) == 110
    assert set(sizes[:-1]) <= {batch_size} and sizes[-1] == 110 - batch_size * (len(sizes) - 1)
    results, labels = pixels(loader)
    assert torch.equal(results, images[labels])
    assert torch.equal(labels.sort().values, torch.arange(110))
    assert torch.equal(labels, torch.arange(110)) != shuffle


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
    images, options = random_images(90), {"shuffle": True, "padding": 2, "flip": True, "seed": 1}
    for (a, _), (b, _) in zip(
        raw_loader(images, **options), raw_loader(images, channels_last=True, **options), strict=True
    ):
        assert torch.equal(a, b) and a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)


def test_batches_do_not_depend_on_the_size_of_a_block(monkeypatch):
    images, options = random_images(200), {"batch_size": 16, "shuffle": True, "padding": 2, "flip": True}
    one_block = pixels(raw_loader(images, **options))
    monkeypatch.setattr(batches, "BLOCK", 1)
    assert same(one_block, pixels(raw_loader(images, **options)))


# ---- draws -------------------------------------------------------------------------------------------------

AUGMENTED = {"shuffle": True, "padding": 2, "flip": True}


def test_a_loader_resumes_from_the_state_of_another_whose_pass_was_interrupted():
    images = random_images(100)
    whole, interrupted, resumed = (raw_loader(images, seed=seed, **AUGMENTED) for seed in (1, 1, 99))
    pixels(whole)
    next(iter(interrupted))
    resumed.load_state_dict(interrupted.state_dict())
    for _ in range(2):
        assert same(pixels(whole), pixels(resumed))


def test_the_global_generator_is_neither_read_nor_changed():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = pixels(raw_loader(random_images(100), **AUGMENTED))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert same(first, pixels(raw_loader(random_images(100), **AUGMENTED)))


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
