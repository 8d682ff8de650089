"""Several processes do what one does with their batches together."""

import json
import os
import runpy
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch

from tests.helpers.runs import ROOT, exit_code, fork
from tests.training.test_survival import final
from training.checkpoints import read_log

PLAIN = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
import torch.nn as nn
import linearconv_sparse
from training import Recipe, main

linearconv_sparse.PUBLISHED_INTERVAL, linearconv_sparse.PUBLISHED_STEP = 3, 1e-2  # it prunes within these short runs
made = []

class Plain(nn.Module):
    '''No BatchNorm, no dropout; in float64, so that rounding does not grow to what a mistake would do.'''
    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        self.body = nn.Sequential(conv(in_channels, 8, 3, stride=2), nn.Tanh(), conv(8, 16, 3, stride=2), nn.Tanh())
        self.fc = nn.Linear(16 * 49, num_classes)
        self.steps = 0
        self.double()
        made.append(self)  # shapes only, the network, the dense network

    def forward(self, x):
        self.steps += self.training
        mark = os.environ.get("DIE_ONCE", "")
        if mark and self.steps == 45 and os.environ["RANK"] == "1" and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.fc(self.body(x.double()).flatten(1))

if __name__ == "__main__":
    main({{"Plain": Plain}}, Recipe(lr=1e-3, epochs=1))
    if folder := os.environ.get("STATES"):
        torch.save(made[1].state_dict(), os.path.join(folder, os.environ["RANK"] + ".pt"))
"""


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    return path


OPTIONS = ["--dataset", "digits", "--device", "cpu", "--no-amp"]


def launch(script, *options, processes=1, **environment):
    """Run a script in forked processes, as torchrun does without importing torch again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank):
        place = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (place | environment).items()})
        sys.argv = [str(script), *OPTIONS, *map(str, options)]
        runpy.run_path(str(script), run_name="__main__")

    pids = [fork(partial(run, rank)) for rank in range(processes)]
    assert [exit_code(pid) for pid in pids] == [0] * processes


def assert_pruned(state):
    masks = [tensor for name, tensor in state.items() if name.endswith("mask")]
    assert len(masks) == 2 and all(0.3 < (mask == 0).double().mean() < 0.7 for mask in masks)


def test_two_processes_of_25_equal_one_of_50(plain, tmp_path, capfd):
    kind = "-t", "sparse", "-s", "0.5"
    launch(plain, *kind, "--batch-size", 25, "--output", tmp_path / "two", processes=2, STATES=tmp_path)
    assert capfd.readouterr().out.count("epoch   1/1") == 1  # only rank 0 prints
    launch(plain, *kind, "--batch-size", 50, "--output", tmp_path / "one")
    for name, tensor in final(tmp_path / "one")["model"].items():  # after 29 steps, the last one smaller
        torch.testing.assert_close(final(tmp_path / "two")["model"][name], tensor, rtol=1e-9, atol=1e-9)
    two, one = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("two", "one"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-6)  # summed in float32
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.3)
    assert round(two["test_accuracy"] * 359 / 100, 6).is_integer()  # every test image counted once
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert_pruned(states[1])


@pytest.mark.slow
def test_a_killed_worker_is_restarted_and_the_run_ends_as_the_unbroken_one(plain, tmp_path):
    options = ["-t", "sparse", "-s", "0.5", "--pruning", "published", "--epochs", 2, "--batch-size", 25]
    options += ["--save-every", 1e-6, "--output"]
    mark = tmp_path / "died"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", "--max-restarts", "2", plain, *OPTIONS, *options, tmp_path / "killed"]
    environment = os.environ | {"DIE_ONCE": str(mark)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and mark.exists(), done.stderr
    assert "resuming after epoch 1 and 11 batches of the next" in done.stdout  # saved every 10 steps
    launch(plain, *options, tmp_path / "unbroken", processes=2)
    for name, tensor in final(tmp_path / "unbroken")["model"].items():
        assert torch.equal(final(tmp_path / "killed")["model"][name], tensor)
    assert_pruned(final(tmp_path / "killed")["model"])
    losses = [[record["train_loss"] for record in read_log(tmp_path / name)] for name in ("killed", "unbroken")]
    assert losses[0] == losses[1] and len(losses[0]) == 2
