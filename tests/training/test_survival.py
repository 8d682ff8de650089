"""Runs that are killed, stopped, starved or poisoned lose nothing that was saved, and say what happened."""

import errno
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from torch.utils._pytree import tree_leaves

import linearconv_sparse
import training
from tests.helpers.commands import ended
from tests.helpers.runs import EVERY_SCRIPT, exit_code, fork, start
from training.checkpoints import read_log
from training.finite import FiniteCheck
from training.trainer import Trainer

SMALL = "--width 0.125 --epochs 3"
WHOLE = (  # everything that the paper's recipe has not
    "--recipe fast --optimizer sgd --lr 0.01 --schedule cosine --warmup 1 --weight-decay 0.001 --decay filters "
    "--label-smoothing 0.1 --flip alternating --average 1 --init spectral --dense-epochs 1"
)
TIMES = {"seconds", "images_per_second", "command", "git_commit"}  # what a report may differ in


def final(folder, epoch=None):
    """The checkpoint after an epoch, by default the last one."""
    name = f"checkpoint-{epoch:04d}.pt" if epoch else max(path.name for path in folder.glob("checkpoint-*.pt"))
    return torch.load(folder / name, weights_only=True)


def assert_same_run(ours, theirs, epoch=3):
    states = [final(folder, epoch) for folder in (ours, theirs)]
    leaves = [tree_leaves([state["model"], state["random"]]) for state in states]
    for one, other in zip(*leaves, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    records = [[json.loads((folder / "report.json").read_text()), *read_log(folder)] for folder in (ours, theirs)]
    for one, other in zip(*records, strict=True):
        assert {key: one[key] for key in one.keys() - TIMES} == {key: other[key] for key in other.keys() - TIMES}


def at_step(number, action, monkeypatch):
    """Let `action(trainer)` happen after a step of the run, counted from its beginning."""
    step = Trainer._train_step

    def and_then(trainer, images, labels):
        step(trainer, images, labels)
        if trainer.progress.step == number:
            action(trainer)

    monkeypatch.setattr(Trainer, "_train_step", and_then)


@pytest.mark.parametrize(
    "setting, step, number",  # of four steps an epoch
    [
        ("base -t sparse -s 0.5", 8, signal.SIGINT),
        ("base -t sparse -s 0.5 --pruning published", 7, signal.SIGTERM),
        ("allconv -t lowrank -r 2", 6, signal.SIGTERM),  # drops out at random
        ("base -t rank --milestones 1 2", 9, signal.SIGTERM),
        ("base -t rank --in-memory no --workers 2", 6, signal.SIGTERM),
        *((f"base -t rank --amp {WHOLE}", step, signal.SIGTERM) for step in (3, 4, 6)),  # the conversion is before 5
    ],
)
def test_a_signal_ends_the_run_after_the_step_and_the_resumed_run_is_the_same(
    setting, step, number, run, capsys, monkeypatch
):
    monkeypatch.setattr(linearconv_sparse, "PUBLISHED_INTERVAL", 2)  # of 12 steps
    monkeypatch.setattr(linearconv_sparse, "PUBLISHED_STEP", 1e-2)
    script, options = setting.split(maxsplit=1)
    code = {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    unbroken = run(script, f"{options} {SMALL}", "unbroken")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(step, lambda trainer: os.kill(os.getpid(), number), patch)
        found, line = ended(capsys, run, script, f"{options} {SMALL}", "broken")
    assert found == code and signal.Signals(number).name in line and "continue with --resume" in line
    newest = max(run.folder("broken").glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.stem == f"checkpoint-{step // 4:04d}" + (f"-{step % 4:06d}" if step % 4 else "")
    broken = run(script, f"{options} {SMALL} --resume", "broken")
    assert_same_run(broken, unbroken)
    masks = [tensor for name, tensor in final(broken, 3)["model"].items() if name.endswith("mask")]
    assert len(masks) == 4 * ("sparse" in options) and all((mask == 0).any() for mask in masks)


def test_a_signal_in_the_last_epoch_evaluation_lets_the_run_end(run, monkeypatch):
    evaluate = Trainer.evaluate

    def and_signal(trainer):
        if trainer.progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer)

    monkeypatch.setattr(Trainer, "evaluate", and_signal)
    assert (run("base", f"-t dense {SMALL}") / "report.json").exists()


def test_a_signal_to_all_processes_of_a_run_ends_it_in_one_line_and_saved(data, tmp_path, capfd):
    options = "--width 0.125 --epochs 100000 --in-memory no --workers 2 --batch-size 9 --device cpu"
    options += f" --dataset imagefolder --data-root {data} --output {tmp_path / 'run'}"

    def in_a_session():
        os.setsid()
        training.main(*EVERY_SCRIPT["base"], options.split())

    pid = fork(in_a_session)
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGINT)
    assert exit_code(pid) == 130
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "continue with --resume" in lines[0]


def test_the_handlers_are_put_back(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run("base", "-t dense --width 0.125 --epochs 1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_that_is_killed_while_it_saves_has_its_best_in_the_end(run, monkeypatch):
    replace = os.replace

    def and_die(*paths):
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate", lambda trainer: 50.0)  # never better than at first
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", and_die)  # after the first file
        with pytest.raises(SystemExit):
            run("base", f"-t dense {SMALL}")
    folder = run("base", f"-t dense {SMALL} --resume auto")
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == 1


def test_long_epochs_are_saved_within_and_the_newest_two_checkpoints_and_the_best_are_kept(run):
    folder = run("base", "-t dense --width 0.125 --epochs 3 --save-every 0.000001")
    kept = {"best.pt", "checkpoint-0002-000003.pt", "checkpoint-0003.pt"}  # of four steps an epoch
    assert {path.name for path in folder.glob("*.pt")} == kept
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["epoch"] == json.loads((folder / "report.json").read_text())["best_epoch"]


SETTINGS = [
    "base -t dense",
    "base -t rank -r 1",
    "base -t rank -r 0.5",
    "base -t lowrank -r 4 --milestones 10 20",
    "base -t sparse -s 0.5",
    "base -t sparse -s 0.5 --pruning published",
    "base -t octave",
    "base -t basis --width 1",
    "base -t ghost",
    "base -t svd",
    "allconv -t lowrank -r 2",  # drops out at random
    "mobilenetv2 -t rank",
    "base -t rank --recipe fast --epochs 30",
    "base -t rank --optimizer sgd --lr 0.01 --clip 0.5",
    "base -t rank --schedule cosine --warmup 2",
    "base -t rank --average 3",
    "base -t rank --dense-epochs 10",
    "base -t rank --init spectral",
    "base -t rank --optimizer adamw --weight-decay 0.01 --decay filters",
    "base -t rank --flip alternating --label-smoothing 0.1",
    "base -t rank --amp",
    "base -t rank --in-memory no --workers 2",
    "base -t rank --in-memory no --workers 0",
    "base -t rank --validation 6",
    "zoo -t rank --network torchvision:squeezenet1_1 --calibrate 16 --epochs 4",
]


def kill_and_resume(data, tmp_path, setting, kills):
    script, options = setting.split(maxsplit=1)
    small = "" if script == "zoo" else "--width 0.25 --epochs 30"
    options = f"{small} {options} --dataset imagefolder --data-root {data} --batch-size 9 --save-every 0.001 --output"
    for _ in range(2):  # the first run imports what the forked ones need not import again
        shutil.rmtree(tmp_path / "unbroken", ignore_errors=True)
        began = time.monotonic()
        training.main(*EVERY_SCRIPT[script], ["--device", "cpu", *options.split(), str(tmp_path / "unbroken")])
    whole = time.monotonic() - began
    draw, killed, ends = random.Random(setting), 0, []
    while killed < kills or not ends:
        pid = start(script, f"{options} {tmp_path / 'broken'} --resume auto")
        if killed < kills:
            time.sleep(draw.uniform(0.1, 0.6) * whole)
            os.kill(pid, signal.SIGKILL)
        code = exit_code(pid)
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if code == 0:
            ends.append(assert_same_run(tmp_path / "broken", tmp_path / "unbroken", epoch=None))
            if killed < kills:  # once more from the beginning
                shutil.rmtree(tmp_path / "broken")


def test_a_killed_run_is_resumed_and_ends_as_the_unbroken_one(data, tmp_path):
    kill_and_resume(data, tmp_path, "base -t sparse -s 0.5 --milestones 3 5", kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_killed_5_times_ends_as_the_unbroken_one(data, tmp_path, setting):
    kill_and_resume(data, tmp_path, setting, kills=5)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(run, capsys, monkeypatch):
    fsync = os.fsync

    def full(descriptor):
        if (run.folder("run") / "best.pt").exists():
            if list(run.folder("run").glob("checkpoint-0002.*.part.pt")):
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, line = ended(capsys, run, "base", f"-t dense {SMALL}")
    assert code == 2 and line.endswith("checkpoint-0002.pt: No space left on device")
    monkeypatch.undo()
    assert sorted(path.name for path in run.folder("run").glob("*.pt*")) == ["best.pt", "checkpoint-0001.pt"]
    assert_same_run(run("base", f"-t dense {SMALL} --resume"), run("base", f"-t dense {SMALL}", "unbroken"))


def test_a_folder_that_vanishes_ends_the_run_with_one_line(run, capsys, monkeypatch):
    at_step(6, lambda trainer: shutil.rmtree(trainer.folder), monkeypatch)
    code, line = ended(capsys, run, "base", f"-t dense {SMALL}")
    assert code == 2 and "No such file or directory" in line and "run" in line


def test_a_nan_stops_the_run_names_the_layer_and_keeps_the_last_good_checkpoint(run, capsys, monkeypatch):
    def poison(trainer):
        trainer.model.feat[2][0].conv_weights.data[0, 0] = float("nan")

    at_step(6, poison, monkeypatch)
    code, line = ended(capsys, run, "base", f"-t rank {SMALL}")
    assert code == 3 and "epoch 2, step 7, learning rate 0.001" in line and "feat.2.0" in line
    monkeypatch.undo()
    state = torch.load(run.folder("run") / "checkpoint-0001.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values() if tensor.is_floating_point())
    assert_same_run(run("base", f"-t rank {SMALL} --resume"), run("base", f"-t rank {SMALL}", "unbroken"))


def test_on_other_devices_the_flag_is_read_now_and_then():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    check = FiniteCheck(model, optimizer, torch.device("cpu"))
    check.every = 3  # as on a device whose steps do not wait for the host
    seen = []
    for step in range(6):
        optimizer.zero_grad()
        loss = model(torch.ones(1, 2)).sum() * (float("inf") if step else 1.0)
        loss.backward()
        seen.append(check.check(loss))
        optimizer.step()
        if step == 0:
            before = model.weight.detach().clone()
    assert seen == [True, True, False, True, True, False] and not check.may_save()
    assert torch.equal(model.weight, before)  # the optimizer took no step after the first bad one


def test_options_that_may_change_do(run, refused, capsys):
    folder = run("base", "-t rank --width 0.125 --epochs 2")
    line = refused("base", "-t rank --width 0.125 --epochs 3 --lr 0.01 --batch-size 6 --resume --may-change lr")
    assert "batch_size 9 there, 6 here" in line and "lr" not in line.split("(")[1]
    run("base", "-t rank --width 0.125 --epochs 4 --lr 0.01 --milestones 3 --resume --may-change lr milestones")
    assert [record["lr"] for record in read_log(folder)] == pytest.approx([0.001, 0.001, 0.01, 0.001])
    assert "needs --resume" in refused("base", "-t rank --may-change lr", "other")


def test_a_checkpoint_of_other_versions_is_used_and_said_so(run, capsys):
    folder = run("base", "-t rank --width 0.125 --epochs 1")
    path = folder / "checkpoint-0001.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"versions": state["versions"] | {"torch": "1.4.0"}}, path)
    run("base", "-t rank --width 0.125 --epochs 2 --resume")
    assert "written by torch 1.4.0: the resumed run is not bit for bit" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["--amp", "--no-amp"])
def test_on_a_gpu_a_resumed_run_is_the_same_too(run, amp):
    options = f"-t rank --device cuda {amp} --deterministic --width 0.25 --epochs"
    unbroken = run("base", f"{options} 3", "unbroken")
    run("base", f"{options} 2", "broken")
    assert_same_run(run("base", f"{options} 3 --resume", "broken"), unbroken)
    torch.use_deterministic_algorithms(False)
