"""What the readers share: evenly spaced indices, mean and standard deviation per channel."""

import numpy as np
import pytest
import torch

from images.info import channel_statistics, evenly_spaced


@pytest.mark.parametrize(
    ("total", "limit", "indices"), [(10, 3, [0, 3, 6]), (3, None, [0, 1, 2]), (3, 9, [0, 1, 2]), (9, 1, [0])]
)
def test_evenly_spaced_indices_reach_over_the_whole(total, limit, indices):
    assert evenly_spaced(total, limit).tolist() == indices


@pytest.mark.parametrize("shape", [(50, 3, 8, 8), (5000, 1, 4, 4)])
def test_mean_and_deviation_are_those_of_numpy(shape):
    pixels = np.random.default_rng(0).integers(0, 200, shape, dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(pixels))
    assert mean == pytest.approx(pixels.astype(np.float64).mean((0, 2, 3)) / 255, rel=1e-12)
    assert std == pytest.approx(pixels.astype(np.float64).std((0, 2, 3)) / 255, rel=1e-12)


def test_a_constant_channel_has_a_deviation_to_divide_by():
    assert channel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1 / 255,))
