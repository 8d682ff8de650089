"""What the readers share: evenly spaced indices, mean and standard deviation per channel, the free memory."""

import numpy as np
import pytest
import torch

from images import info
from images.info import available_memory, channel_statistics, evenly_spaced, fits, physical_memory


@pytest.mark.parametrize(
    ("total", "limit", "indices"), [(10, 3, [0, 3, 6]), (3, None, [0, 1, 2]), (3, 9, [0, 1, 2]), (9, 1, [0])]
)
def test_evenly_spaced_indices_reach_over_the_whole(total, limit, indices):
    assert evenly_spaced(total, limit).tolist() == indices


def test_mean_and_deviation_are_those_of_numpy():
    pixels = np.random.default_rng(0).integers(0, 200, (5000, 3, 4, 4), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(pixels))
    assert mean == pytest.approx(pixels.astype(np.float64).mean((0, 2, 3)) / 255, rel=1e-12)
    assert std == pytest.approx(pixels.astype(np.float64).std((0, 2, 3)) / 255, rel=1e-12)


def test_a_constant_channel_has_a_deviation_to_divide_by():
    assert channel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1 / 255,))


def test_a_set_fits_into_half_of_the_free_memory(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(info, "available_memory", lambda: 1000)
    assert fits(500, cpu) and not fits(501, cpu)
    assert fits(250, cpu, copies=2) and not fits(251, cpu, copies=2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 800))
    assert fits(300, gpu) and not fits(301, gpu)
    assert fits(250, gpu, copies=2) and not fits(251, gpu, copies=2)  # each process has its own GPU


def test_the_memory_is_known_where_the_system_does_not_report_it(monkeypatch):
    assert 2**20 < available_memory() <= physical_memory() < float("inf")

    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(info.Path, "read_text", refuse)
    assert available_memory() == physical_memory()
    monkeypatch.setattr(info.os, "sysconf", refuse)
    assert available_memory() == float("inf")
