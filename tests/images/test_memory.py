"""How much memory there is, and what fits into it."""

import pytest
import torch

from images import info as memory
from images.info import available_memory, fits, physical_memory

CPU = torch.device("cpu")


def test_no_more_is_available_than_there_is():
    assert 2**20 < available_memory() <= physical_memory() < float("inf")


def test_a_set_fits_into_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert fits(500, CPU) and not fits(501, CPU)
    assert fits(250, CPU, copies=2) and not fits(251, CPU, copies=2)


def test_on_a_gpu_its_memory_counts_too(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 800))
    gpu = torch.device("cuda")
    assert fits(300, gpu) and not fits(301, gpu) and fits(301, CPU)
    assert fits(250, gpu, copies=2) and not fits(251, gpu, copies=2)  # each has its own GPU


@pytest.mark.parametrize("name", ["sysconf", "open"])
def test_where_the_system_does_not_tell_there_is_a_number_all_the_same(monkeypatch, name):
    def refuse(*_, **__):
        raise OSError

    if name == "sysconf":
        monkeypatch.setattr(memory.os, "sysconf", refuse)
        assert physical_memory() == float("inf")
    else:
        monkeypatch.setattr(memory.Path, "read_text", refuse)
        assert available_memory() == physical_memory()
