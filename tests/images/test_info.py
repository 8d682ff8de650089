"""Shared parts of the readers: channel statistics and decoding."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader

from images.info import channel_statistics, decode
from tests.images.checks import refused


def test_the_deviation_of_a_constant_channel_is_one_grey_level():
    assert channel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1 / 255,))


GREY = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
GREY[0, :2] = 0, 255


def decoded(path, image, **options):
    """The RGB values that a saved image is decoded to, uint8 (H, W, 3)."""
    image.save(path, **options)
    return decode(os.fsencode(path), np.asarray)


def test_every_mode_becomes_rgb(tmp_path):
    colour = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    opaque = np.dstack([colour, np.full((9, 12), 255, np.uint8)])
    palette = Image.new("P", (12, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    three = np.dstack([GREY] * 3)
    cases = [(Image.fromarray(GREY), three), (Image.fromarray(GREY).convert("LA"), three)]
    cases += [(Image.fromarray(colour), colour), (Image.fromarray(opaque), colour), (palette, (10, 20, 30))]
    cases += [(Image.fromarray(GREY > 127), 255 * (three > 127))]
    for image, expected in cases:
        assert (decoded(tmp_path / "0.png", image) == expected).all(), image.mode


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (np.float32, "tif")]
)
def test_the_range_of_the_values_decides_how_many_bits_they_have(tmp_path, dtype, suffix):
    for factor in (1, 16, 257):  # 8, 12 and 16 bits
        image = Image.fromarray((GREY * np.uint32(factor)).astype(dtype))
        assert (decoded(tmp_path / f"0.{suffix}", image) == GREY[..., None]).all(), factor


@pytest.mark.parametrize("values", [[[0.5, 0.2]], [[float("nan"), 1]], [[-1, 1]], [[0, 2**16]]])
def test_values_without_a_fixed_range_are_refused(tmp_path, values):
    image = Image.fromarray(np.array(values, np.float32))
    refused(lambda: decoded(tmp_path / "0.tif", image), tmp_path / "0.tif", "8 or 16 bits")


def test_the_orientation_is_that_of_torchvision(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    ours = decoded(tmp_path / "0.png", Image.fromarray(GREY), exif=exif)
    assert ours.shape == (9, 12, 3) and (ours == np.asarray(default_loader(tmp_path / "0.png"))).all()
