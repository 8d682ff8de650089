"""Image files of odd sizes and all modes."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """60 images as (paths, labels)."""
    folder, rng, paths = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0), []
    for i in range(60):
        height, width = rng.integers(5, 40, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(MODES[i % 7])
        paths.append(os.fsencode(folder / f"{i:03d}.{'tif' if image.mode == 'CMYK' else 'png'}"))
        image.save(os.fsdecode(paths[-1]))
    return np.array(paths), torch.arange(60)
