"""The turns of a measurement, and the memory that it keeps."""

import os
import platform
import resource

import pytest

from benchmarks import measuring
from training.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ, reason="needs glibc's malloc")
def test_freed_memory_is_kept_for_the_next_allocation():
    keep_freed_memory()
    size, pages = 2**26, 2**26 // resource.getpagesize()
    b"x" * size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages  # otherwise ten times as many


@pytest.mark.parametrize("held, extra", ((0.1, 1 + 2), (0.9, 1 + measuring.LEAST_ROUNDS)))
def test_steps_that_take_much_memory_are_run_once_before_each_turn(held, extra, monkeypatch):
    monkeypatch.setattr(measuring, "memory_share", lambda: held)
    monkeypatch.setattr(measuring, "SHORTEST_TURN", 0)
    calls = []
    taken = measuring.measure({"dense": lambda: calls.append("dense"), "ours": lambda: calls.append("ours")}, 0, "cpu")
    assert [len(seconds) for seconds in taken.values()] == [measuring.LEAST_ROUNDS] * 2
    assert calls.count("dense") == calls.count("ours") == measuring.LEAST_ROUNDS + extra
