"""Runs on streamed images: stopped and resumed, by several processes, and never mixed with images in memory."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.runs import ROOT, exit_code, fork
from tests.training.test_survival import assert_same_run, at_step, ended

STREAMED = "--width 0.125 --epochs 3 --in-memory no"


def test_a_run_that_is_stopped_within_an_epoch_ends_as_the_unbroken_one(run, capsys, monkeypatch):
    unbroken = run("allconv", f"-t lowrank -r 2 {STREAMED} --workers 0", "unbroken")  # drops out at random
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(6, lambda trainer: os.kill(os.getpid(), signal.SIGTERM), patch)
        code, line = ended(capsys, run, "allconv", f"-t lowrank -r 2 {STREAMED} --workers 2", "broken")
    assert code == 143 and "epoch 1 and 2 batches of the next" in line
    broken = run("allconv", f"-t lowrank -r 2 {STREAMED} --workers 1 --resume", "broken")
    assert_same_run(broken, unbroken)


def test_the_images_place_is_in_the_report_and_may_not_change(run, refused, capsys):
    folder = run("base", f"-t dense {STREAMED} --workers 0 --epochs 1")
    assert "streamed" in capsys.readouterr().out
    assert json.loads((folder / "report.json").read_text())["in_memory"] is False
    line = refused("base", "-t dense --width 0.125 --epochs 2 --resume")
    assert "in_memory False there, True here" in line


def test_too_little_memory_streams_by_itself(run, monkeypatch):
    monkeypatch.setattr("dataloaders.available_memory", lambda: 2 * 48 * 3 * 32 * 32 - 1)
    folder = run("base", "-t dense --width 0.125 --epochs 1 --workers 1")
    assert json.loads((folder / "report.json").read_text())["in_memory"] is False


def test_other_sets_are_not_streamed(refused):
    line = refused("base", "-t dense --dataset digits --in-memory no", dataset=False)
    assert "--dataset imagefolder" in line


def test_a_damaged_image_ends_the_run_with_one_line(run, refused, data):
    path = data / "train" / "red" / "damaged.png"
    path.write_bytes(b"not an image")
    try:
        assert str(path) in refused("base", f"-t dense {STREAMED} --workers 2")
    finally:
        path.unlink()


# ---- processes of their own ---------------------------------------------------------------------------------------


def command(data, folder, *options):
    network = [str(ROOT / "models" / "base_xcnn.py"), "-t", "dense", *STREAMED.split(), "--device", "cpu", "--no-amp"]
    where = ["--dataset", "imagefolder", "--data-root", str(data), "--output", str(folder)]
    return [*network, *where, *map(str, options)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_signal_to_all_processes_of_a_run_ends_it_in_one_line_and_saved(data, tmp_path, capfd):
    number = signal.SIGINT
    options = ["--epochs", 100_000, "--workers", 2, "--batch-size", 9]

    def in_a_session():
        os.setsid()
        sys.argv = command(data, tmp_path / "run", *options)
        runpy.run_path(sys.argv[0], run_name="__main__")

    pid = fork(in_a_session)
    while not (tmp_path / "run" / "log.jsonl").exists():
        time.sleep(0.05)
    os.killpg(pid, number)
    assert exit_code(pid) == 128 + number
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "continue with --resume" in lines[0]


@pytest.mark.slow
def test_two_processes_stream_their_shares(data, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    arguments = command(data, tmp_path / "two", "--workers", 1, "--batch-size", 5)
    done = subprocess.run([sys.executable, *launcher, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["in_memory"] is False
    assert round(report["test_accuracy"] * 12 / 100, 6).is_integer()  # every test image counted once
