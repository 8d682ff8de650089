"""What the benchmarks ask of the C library."""

import os
import platform
import subprocess
import sys

import pytest

from benchmarks import measuring
from benchmarks.measuring import KEEPING, TUNABLES
from training.report import ROOT

CODE = f"import os; from benchmarks.measuring import keep_freed_memory as keep; keep(); print(os.environ['{TUNABLES}'])"


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_benchmark_starts_anew_with_memory_kept():
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, KEEPING), done.stderr


def test_given_settings_of_the_c_library_stay(monkeypatch):
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=0")
    monkeypatch.setattr(os, "execve", None)
    measuring.keep_freed_memory()


@pytest.mark.parametrize("held, extra", ((0.1, 1 + 2), (0.9, 1 + measuring.LEAST_ROUNDS)))
def test_steps_that_take_much_memory_are_run_once_before_each_turn(held, extra, monkeypatch):
    monkeypatch.setattr(measuring, "memory_share", lambda: held)
    monkeypatch.setattr(measuring, "SHORTEST_TURN", 0)
    calls = []
    taken = measuring.measure({"dense": lambda: calls.append("dense"), "ours": lambda: calls.append("ours")}, 0, "cpu")
    assert [len(seconds) for seconds in taken.values()] == [measuring.LEAST_ROUNDS] * 2
    assert calls.count("dense") == calls.count("ours") == measuring.LEAST_ROUNDS + extra
