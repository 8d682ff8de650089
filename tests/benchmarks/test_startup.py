"""How long scripts take to start: what is measured, and what they do not load."""

import subprocess
import sys

import pytest

from benchmarks import startup

PROGRAM = """
import runpy, sys
import numpy, torch
before, sys.argv = set(sys.modules), {argv!r}
try:
    runpy.run_path({argv[0]!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code
print(*set(sys.modules) - before)
"""
NOT_FOR_HELP = {"thop", "setuptools", "torchvision", "sklearn", "tqdm", "torch._dynamo", "PIL", "onnx", "tensorboard"}


@pytest.mark.parametrize(
    "option, without",
    [("--help", NOT_FOR_HELP), ("--count-only", NOT_FOR_HELP - {"thop", "setuptools"})],
    ids=("help", "count-only"),
)
def test_beside_torch_a_script_loads_little(option, without):
    path = str(startup.ROOT / "models" / "vgg_xcnn.py")
    program = PROGRAM.format(argv=[path, option, "--width", "0.125"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "training.run" in loaded
    assert without & loaded == set()


def test_processes_are_timed_in_turns_against_the_first():
    wait, work = "python -c 'import time; time.sleep(0.4)'", "python -c 'sum(range(20_000_000))'"
    first, second, again = startup.measure((wait, work, wait + " "), rounds=1)
    assert [row["command"] for row in (first, second, again)] == [wait, work, wait + " "]
    assert first["cpu_seconds_ratio"] == first["seconds_ratio"] == 1
    assert first["seconds"] > 0.4 > first["cpu_seconds"]  # waiting takes time on the clock alone
    assert second["cpu_seconds_ratio"] > 2 and again["cpu_seconds_ratio"] < 2


def test_a_command_that_fails_is_not_timed():
    with pytest.raises(subprocess.CalledProcessError):
        startup.time_process("python -c 'raise SystemExit(1)'")
