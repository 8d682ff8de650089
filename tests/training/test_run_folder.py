"""The folder of a run: one run at a time, no damaged or other data loaded, no file of the user deleted."""

import json
import os
import random
import shutil
import signal
import socket
import time
import zipfile

import pytest
import torch

from linearconv_convert.networks import load_tensors
from tests.helpers.commands import ended
from tests.helpers.runs import exit_code, start
from tests.training.test_survival import SMALL, at_step
from training import checkpoints, errors
from training.checkpoints import BEST, LOG, open_folder, read_log
from training.errors import StopSignals, UsageError

RUN = f"-t rank {SMALL}"


def test_a_folder_in_use_is_refused_and_free_again_when_its_run_has_ended(run, refused):
    with open_folder(run.folder("run")):
        for resume in ("", "--resume auto"):
            assert "another run uses the folder" in refused("base", f"{RUN} {resume}")
        begun, begin = os.pipe()
        child = os.fork()  # as a worker that outlives its killed run
        if child == 0:
            os.write(begin, b"1")
            signal.pause()
        os.read(begun, 1)  # the child has let go of the lock
    try:
        assert (run("base", RUN) / "report.json").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(begin)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(40))
def test_of_two_runs_that_start_at_once_one_is_refused(data, tmp_path, attempt):
    rates = ["0.001", "0.01"]
    options = f"--dataset imagefolder --data-root {data} --output {tmp_path / 'run'} --epochs 1 --lr"
    pids = [start("base", f"{options} {rate}") for rate in rates]
    codes = [exit_code(pid) for pid in pids]
    assert sorted(codes) == [0, 2]
    assert [(record["epoch"], record["lr"]) for record in read_log(tmp_path / "run")] == [
        (1, float(rates[codes.index(0)]))
    ]


def test_a_flipped_bit_of_a_tensor_is_found(run, capsys, tmp_path):
    folder = run("base", RUN)
    path = folder / "checkpoint-0003.pt"
    with zipfile.ZipFile(path) as archive:
        tensor = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[tensor.header_offset + tensor.file_size // 2 + 200] ^= 1
    path.write_bytes(content)
    (folder / "report.json").unlink()
    run("base", f"{RUN} --resume")
    out = capsys.readouterr().out
    assert "checkpoint-0003.pt is damaged" in out and "resuming after epoch 2" in out


def test_the_best_checkpoint_is_the_last_choice_and_then_another_folder_is_named(run, refused, capsys):
    folder = run("base", RUN)
    for path in folder.glob("checkpoint*"):
        path.write_bytes(path.read_bytes()[:1000])
    run("base", f"{RUN} --resume")
    assert f"from {folder / BEST}" in capsys.readouterr().out
    for path in folder.glob("*.pt"):
        path.write_bytes(b"")
    for resume in ("--resume", "--resume auto"):
        assert "begin anew with another --output" in refused("base", f"{RUN} {resume}")


def test_a_checkpoint_without_its_structure_is_refused(run, refused):
    folder = run("base", f"{RUN} --epochs 1")
    (folder / BEST).unlink()
    path = folder / "checkpoint-0001.pt"
    state = load_tensors(path)
    lacking = [{key: value for key, value in state.items() if key != name} for name in checkpoints.STRUCTURE]
    for damaged in (*lacking, state | {"epoch": "2"}):
        torch.save(damaged, path)
        with pytest.raises(UsageError, match=f"no usable checkpoint in {folder}"):
            checkpoints.load_newest(folder)
    torch.save(state | {"batch": 99}, path)
    assert f"{path} does not fit" in refused("base", f"{RUN} --resume")


def test_only_names_of_checkpoints_are_read_and_deleted(run, capsys):
    folder = run("base", f"{RUN} --epochs 1")
    names = "checkpoint-good.pt checkpoint-0001-keep.pt checkpoint-2024backup.pt checkpoint-00001.pt mine.part"
    for name in names.split():
        shutil.copy(folder / "checkpoint-0001.pt", folder / name)
    (folder / "checkpoint-0001.4321.part.pt").touch()  # left by a killed run
    run("base", f"{RUN} --resume")
    assert f"resuming after epoch 1 from {folder / 'checkpoint-0001.pt'}" in capsys.readouterr().out
    kept = {BEST, LOG, "report.json", checkpoints.LOCK, "checkpoint-0002.pt", "checkpoint-0003.pt"}
    assert {path.name for path in folder.iterdir()} == kept | set(names.split())


def test_a_run_is_resumed_with_its_own_options_only(run, refused):
    options = "-t rank --width 0.125 --recipe fast --epochs 2"
    run("base", options)
    for script, change, message in (
        ("vgg", "", "network Base there, VGG11 here"),
        ("base", "-t lowrank", "type rank there, lowrank here"),
        ("base", "--epochs 3", "epochs 2 there, 3 here"),  # every learning rate before would have been another
        ("base", "--in-memory no --workers 0", "in_memory True there, False here"),
        ("base", "--lr 0.1 --resume auto", "lr 0.01 there, 0.1 here"),
    ):
        assert message in refused(script, f"{options} --resume {change}")


def test_a_run_is_resumed_with_its_own_data_only(run, refused, data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    options = f"{RUN} --dataset imagefolder --data-root {root} --batch-size 9"
    report = json.loads((run("base", options, dataset=False) / "report.json").read_text())
    assert (report["classes"], report["image_size"]) == (["blue", "green", "red"], 32)
    (root / "train" / "red" / "0.png").unlink()
    assert "num_images (36, 12)" in refused("base", f"{options} --resume", dataset=False)
    for split in ("train", "test"):
        (root / split / "blue").rename(root / split / "azure")
    assert "class 0 blue there, azure here" in refused("base", f"{options} --resume", dataset=False)


def test_a_repeated_signal_does_not_keep_the_run_from_saving(run, capsys, monkeypatch):
    def twice(trainer):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    at_step(6, twice, monkeypatch)
    code, line = ended(capsys, run, "base", RUN)
    assert code == 143 and "saved after epoch 1 and 2 batches of the next" in line
    os.kill(os.getpid(), signal.SIGTERM)  # nor does it disturb the end of the process


def test_a_later_signal_ends_the_process(monkeypatch):
    monkeypatch.setattr(errors, "REPEAT", 0)
    child = os.fork()
    if child == 0:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
    assert exit_code(child) == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(30))
def test_two_signals_at_once_save_the_run(data, tmp_path, attempt):
    options = f"--dataset imagefolder --data-root {data} --output {tmp_path / 'run'} --batch-size 2 --epochs 10000"
    pid = start("base", options)
    while not (tmp_path / "run" / LOG).exists():
        time.sleep(0.01)
    draw = random.Random(attempt)
    time.sleep(draw.uniform(0, 0.5))
    for _ in range(2):
        os.kill(pid, signal.SIGTERM)
        time.sleep(draw.uniform(0, 0.02))
    assert exit_code(pid) == 143
    state, path = checkpoints.load_newest(tmp_path / "run")
    within = f"-{state['batch']:06d}" if state["batch"] else ""
    assert path.name == f"checkpoint-{state['epoch']:04d}{within}.pt"
    assert not list((tmp_path / "run").glob("*.part*"))


def test_weights_that_are_not_finite_are_not_saved_and_the_advice_works(run, capsys):
    line_of_steps = "--batch-size 36 --epochs 1"  # one step, whose gradient is finite
    code, line = ended(capsys, run, "base", f"{RUN} {line_of_steps} --lr 1e38")
    assert code == 3 and "begin with a lower --lr" in line
    assert not list(run.folder("run").glob("*.pt"))
    run("base", f"{RUN} {line_of_steps}")
    code, line = ended(capsys, run, "base", f"{RUN} --batch-size 36 --epochs 2 --lr 1e38 --resume --may-change lr")
    assert code == 3 and "--resume --may-change lr --lr RATE" in line
    run("base", f"{RUN} --batch-size 36 --epochs 2 --lr 1e-4 --resume --may-change lr")


def test_numbers_that_are_too_large_are_refused(refused):
    for options in ("--width 1e5", "-t lowrank -r 1e18", f"--batch-size {10**30}", f"--seed {2**64}"):
        refused("base", options)


def test_a_run_needs_no_output_and_prints_any_character(monkeypatch, tmp_path, capsys):
    path = tmp_path / "ascii.txt"
    with open(path, "w", encoding="ascii") as file:
        monkeypatch.setattr("sys.stdout", file)
        monkeypatch.setattr("sys.stderr", None)  # closed by the shell
        errors.prepare_output()
        print("ünïcode")
        assert errors.report_failure(KeyboardInterrupt(), "base_xcnn.py") == 130
    assert path.read_text() == "\\xfcn\\xefcode\n"


def test_processes_that_cannot_be_joined_are_refused(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK" in refused("base", RUN)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in (("RANK", 0), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", taken.getsockname()[1])):
            monkeypatch.setenv(name, str(value))
        assert "start them with torchrun" in refused("base", RUN)


def test_length_folder_and_time_left_are_printed(run, capsys, monkeypatch):
    monkeypatch.setattr("training.progress.FIRST_LINE", 2)
    folder = run("base", RUN)
    lines = capsys.readouterr().out.splitlines()
    assert f"3 epochs of 4 steps; output folder: {folder}" in lines
    assert [line.endswith(" left") for line in lines if line.startswith("epoch 1/3, batch 2/4: loss ")] == [True]
    assert [line.endswith(" left") for line in lines if line.startswith("epoch   ")] == [True, True, False]
    monkeypatch.setattr("training.progress.SILENCE", 0)
    run("base", RUN, "other")
    assert sum(line.startswith("epoch 2/3, batch ") for line in capsys.readouterr().out.splitlines()) == 4
