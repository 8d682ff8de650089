"""Training runs of seconds, on three colours."""

import os
import sys

# Tests compute with small tensors: a second thread of an operation only waits for the first one. Processes that tests
# start inherit the setting.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

import training
from tests.helpers.commands import ended
from tests.helpers.runs import EVERY_SCRIPT
from training.trainer import Trainer

# If a process exports a model before its first backward pass, torch starts threads in this pass, and processes forked
# afterwards cannot compute gradients. Several tests fork.
torch.ones(1, requires_grad=True).sum().backward()


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="write the golden run anew")
    parser.addoption("--exactly", action="store_true", help="the golden run to the last digit, on the same machine")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Three classes of different colours: 12 training and 4 test images each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        for split, count in (("train", 12), ("test", 4)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                image[..., channel] += 120
                Image.fromarray(image).save(folder / f"{index}.png")
    return root


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Run a script's `main` on the three colours, small and in this process; returns the output folder."""

    def run(script, options, output="run", dataset=True):
        monkeypatch.setattr(sys, "argv", [f"{script}_xcnn.py", *options.split()])
        argv = ["--device", "cpu", *options.split()]
        if dataset:
            argv = ["--dataset", "imagefolder", "--data-root", str(data), "--batch-size", "9", *argv]
        training.main(*EVERY_SCRIPT[script], [*argv, "--output", str(tmp_path / output)])
        return tmp_path / output

    run.folder = lambda output: tmp_path / output
    return run


@pytest.fixture
def trained(run):
    """Run a script in a folder of its own; returns the run's last trainer."""

    def trained(script, options):
        trainers, fit = [], Trainer.fit
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "fit", lambda trainer: trainers.append(trainer) or fit(trainer))
            run(script, options, f"run{len(list(run.folder('.').iterdir()))}")
        return trainers[-1]

    return trained


@pytest.fixture
def refused(run, capsys):
    """Run a script that must end with exit code 2 and one line on stderr; returns that line."""

    def refused(*args, **kwargs):
        code, line = ended(capsys, run, *args, **kwargs)
        assert code == 2
        return line

    return refused
