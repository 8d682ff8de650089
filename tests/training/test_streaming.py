"""Runs on streamed images: stopped and resumed, by several processes, and never mixed with images in memory."""

import json
import os
import signal
import time

import training
from tests.helpers.runs import EVERY_SCRIPT, exit_code, fork
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


def test_a_damaged_image_ends_the_run_with_one_line(run, refused, data):
    path = data / "train" / "red" / "damaged.png"
    path.write_bytes(b"not an image")
    try:
        assert str(path) in refused("base", f"-t dense {STREAMED} --workers 2")
    finally:
        path.unlink()


def test_a_signal_to_all_processes_of_a_run_ends_it_in_one_line_and_saved(data, tmp_path, capfd):
    options = f"-t dense {STREAMED} --epochs 100000 --workers 2 --batch-size 9 --device cpu --output {tmp_path / 'run'}"
    options += f" --dataset imagefolder --data-root {data}"

    def in_a_session():
        os.setsid()
        training.main(*EVERY_SCRIPT["base"], options.split())

    pid = fork(in_a_session)
    while not (tmp_path / "run" / "log.jsonl").exists():
        time.sleep(0.05)
    os.killpg(pid, signal.SIGINT)
    assert exit_code(pid) == 130
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "continue with --resume" in lines[0]
