"""Sweeps: every run is done once, also after interruptions, and the table has the results of the runs."""

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from experiments.results import every_run
from experiments.sweep import __main__ as sweep
from experiments.sweep import plan as sweep_plan
from experiments.sweep import runner as sweep_runner
from experiments.sweep.plan import plan
from experiments.sweep.runner import take_lock
from experiments.sweep.table import markdown, summarise
from tests.helpers.commands import refusal
from tests.helpers.entries import entry, write
from training.recipe import FAST
from training.report import ROOT

# Keeps a training script's contract without training: an epoch is a nap, and what happens is noted in events.txt.
STAND_IN = """
import argparse, json, os, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
for option, type, default in (("-t", str, None), ("-r", float, 2), ("--seed", int, 0), ("--epochs", int, 1),
                              ("--output", Path, None), ("--resume", str, None)):
    parser.add_argument(option, type=type, default=default)
options = parser.parse_args()
folder = options.output
epoch = len(list(folder.glob("checkpoint-*.pt")))

def note(event):
    with open(folder.parent / "events.txt", "a") as file:
        file.write(f"{event} {folder.name} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")

if options.resume != "auto" or (folder / "report.json").exists():
    sys.exit("the folder holds a run already")
note("resume" if epoch else "fresh")
print("to standard output")
if options.seed == 13:
    sys.exit("seed 13\\nwas unlucky")
try:
    for epoch in range(epoch + 1, options.epochs + 1):
        time.sleep(float(os.environ["NAP"]))
        with open(folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "test_accuracy": 80 + epoch}) + "\\n")
        (folder / f"checkpoint-{epoch:04d}.pt").touch()
        note(f"epoch{epoch}")
except KeyboardInterrupt:
    note("ctrl-c")
    sys.exit(130)
report = {"architecture": "Nap", "type": options.t, "rank": options.r, "sparsity": 0.25, "alpha": 0.5, "epochs": epoch}
report |= {"width": 1, "seed": options.seed, "reg_weight": 0.01, "dataset": "digits", "command": str(folder)}
report |= dict.fromkeys(("parameters", "nonzero_parameters", "flops_paper", "macs_inference"), int(1000 * options.r))
report |= {"test_accuracy": 80 + options.r + options.seed**2 / 7, "best_test_accuracy": 90, "best_epoch": 1}
(folder / "report.json").write_text(json.dumps(report))
note("finish")
"""


class Folder:
    """A sweep in a temporary folder."""

    def __init__(self, path):
        self.path = path
        self.script = path / "nap_xcnn.py"
        self.script.write_text(STAND_IN)
        self.runs, self.results = path / "ckpt" / "nap", path / "results"

    def command(self, options, script=None, ckpt="ckpt"):
        places = ["--name", "nap", "--ckpt", str(self.path / ckpt), "--results", str(self.results)]
        return [str(script or self.script), *places, *options.split()]

    def plan(self, options):
        return plan(*sweep.parse(self.command(options)))

    def run(self, options, script=None, ckpt="ckpt"):
        return sweep.main(self.command(options, script, ckpt))

    def start(self, options, ckpt="ckpt"):
        """The same in a process of its own."""
        process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(self.run(options, ckpt=ckpt)))
        process.start()
        return process

    def events(self):
        """(what happened, name of the run, process, threads) of all runs, in order."""
        path = self.runs / "events.txt"
        return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, what):
        """How often something happened, by run."""
        return Counter(run for event, run, *_ in self.events() if re.fullmatch(what, event))

    def wait_for(self, condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, self.events()
            time.sleep(0.01)

    def reports(self):
        return list(every_run(self.results, "nap"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NAP", "0.02")
    monkeypatch.setitem(sys.modules, "experiments.figures.style", None)  # half a second for each plot
    return Folder(tmp_path)


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_an_interrupted_sweep_resumes_and_does_each_run_once(folder, number, monkeypatch, capfd):
    monkeypatch.setenv("NAP", "0.5")
    three = "-r 0.25 0.5 1 --epochs 3 --jobs 2"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell in the background ignore it
    first = folder.start(three)
    signal.signal(signal.SIGINT, before)
    folder.wait_for(lambda: folder.count("epoch1").total() >= 2)
    for _ in range(2):  # the second signal changes nothing
        os.kill(first.pid, number)
        time.sleep(0.15)
    first.join(60)
    assert first.exitcode == 128 + number and not folder.count("finish")
    assert folder.count("ctrl-c").total() == (2 if number == signal.SIGINT else 0)
    assert "0 of 3 runs are done" in capfd.readouterr().err
    assert folder.run(three) == 0
    once = dict.fromkeys(folder.count("fresh"), 1)
    assert len(once) == 3 and folder.count("finish") == once
    assert folder.count("resume").total() >= 2
    assert folder.run("-r 0.25 0.5 0.75 1 --epochs 3") == 0
    assert set(folder.count("fresh").values()) == {1} and len(folder.reports()) == 4


@pytest.mark.slow
def test_runs_outlive_a_killed_sweep_and_a_killed_run_is_resumed(folder, monkeypatch, capfd):
    monkeypatch.setenv("NAP", "0.5")
    four = "-r 0.25 0.5 --seeds 0 1 --epochs 3 --jobs 2"
    first = folder.start(four)
    folder.wait_for(lambda: folder.count("epoch1").total() >= 2)
    first.kill()  # its two runs go on without it
    first.join()
    orphans = {run: int(process) for _, run, process, _ in folder.events()}
    os.kill(min(orphans.items())[1], signal.SIGKILL)  # and one of them is killed too
    assert folder.run(four) == 0
    assert f"{max(orphans)}: another process runs it" in capfd.readouterr().out
    once = dict.fromkeys(folder.count("fresh"), 1)
    assert len(once) == 4 and folder.count("resume").total() == 1
    for event in ("epoch1", "epoch2", "epoch3", "finish"):
        assert folder.count(event) == once


def test_two_sweeps_at_once_run_nothing_twice(folder, monkeypatch, capfd):
    monkeypatch.setenv("NAP", "0.1")
    both = [folder.start("-r 0.25 0.5 1 --seeds 0 1 --jobs 2") for _ in range(2)]
    for one in both:
        one.join(60)
        assert one.exitcode == 0
    assert capfd.readouterr().out.count("written") == 2
    assert set(folder.count("fresh").values()) == set(folder.count("finish").values()) == {1}
    assert len(folder.count("fresh")) == 6 and not folder.count("resume")


@pytest.mark.parametrize("times", (1, pytest.param(30, marks=pytest.mark.slow)))
def test_two_jobs_with_folders_of_their_own_lose_no_result(folder, times, monkeypatch):
    monkeypatch.setenv("NAP", "0")
    for turn in range(times):
        jobs = [folder.start(f"-r 0.{turn + 10}{job} --seeds 0 1", ckpt=f"ckpt{job}") for job in (1, 2)]
        for job in jobs:
            job.join(60)
            assert job.exitcode == 0
        assert len(folder.reports()) == 4 * (turn + 1)


def test_runs_in_the_results_are_done_although_their_folders_are_gone(folder, capfd):
    assert folder.run("--seeds 0 1 --note three_epochs --epochs 3") == 0
    before = (folder.results / "nap.json").read_text()
    shutil.rmtree(folder.path / "ckpt")
    assert folder.run("--seeds 0 1 --epochs 3") == 0
    assert "2 runs, 2 done" in capfd.readouterr().out
    assert not folder.events() and (folder.results / "nap.json").read_text() == before
    assert json.loads(before)["note"] == "three_epochs" and str(folder.path) not in before
    assert [[record["epoch"] for record in run["log"]] for run in folder.reports()] == [[1, 2, 3]] * 2


def test_shards_partition_the_runs_and_the_last_makes_the_table(folder, capfd):
    outs = []
    for shard, runs in (("1/3", 3), ("2/3", 6), ("3/3", 8)):
        assert folder.run(f"-t dense rank -r 0.25 0.5 1 --seeds 0 1 --shard {shard}") == 0
        assert len(folder.count("fresh")) == len(folder.reports()) == runs
        outs.append(capfd.readouterr().out)
    assert "5 runs of other shards are not done" in outs[0]
    assert ["| data |" in out for out in outs] == [False, False, True]
    assert set(folder.count("fresh").values()) == {1}


def test_jobs_run_side_by_side_and_share_cores_and_gpus(folder, monkeypatch):
    monkeypatch.setattr(sweep_runner.torch.cuda, "device_count", lambda: 3)
    for visible, expected in (("4,6,7", ["4", "6", "7"]), ("", ["0", "1", "2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert sweep_runner.gpus_for("cuda") == expected and sweep_runner.gpus_for("cuda:1") == []

    given = "OMP_NUM_THREADS'] + 'x' + os.environ['CUDA_VISIBLE_DEVICES"
    folder.script.write_text(STAND_IN.replace("OMP_NUM_THREADS", given))
    monkeypatch.setenv("NAP", "0.5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(sweep_runner, "gpus_for", lambda device: ["4", "6"])
    assert folder.run("--seeds 0 1") == 0
    assert [event for event, *_ in folder.events()[:2]] == ["fresh"] * 2
    assert {given for *_, given in folder.events()} == {"4x4", "4x6"}


def test_a_failing_run_is_reported_and_the_others_go_on(folder, capfd):
    assert folder.run("--seeds 12 13 14") == 1
    out, err = capfd.readouterr()
    assert re.search(r"done  nap-rank1-default-seed14, test accuracy \d+\.\d\d %, 0\.0 min", out)
    assert "seed13, exit code 1: was unlucky" in out and "1 of 3 runs failed" in err
    assert "to standard output" not in out
    assert "to standard output" in (folder.runs / "nap-rank1-default-seed13" / "output.txt").read_text()
    assert len(folder.count("finish")) == len(folder.reports()) == 2
    assert folder.run("--seeds 12 13 14 --table") == 0
    assert "from 2 of 3 runs" in capfd.readouterr().out and len(folder.reports()) == 2


def test_a_dry_run_lists_states_and_runs_nothing(folder, capfd):
    assert folder.run("--seeds 0") == 0
    before = folder.events()
    with take_lock(folder.runs / "nap-rank1-default-seed2.lock"):
        assert folder.run("--seeds 0 1 2 --dry-run") == 0
    states = [line.partition("  ")[0] for line in capfd.readouterr().out.splitlines()[-3:]]
    assert states == ["done", "to do", "running"] and folder.events() == before


@pytest.mark.parametrize(
    "values, settings",
    (
        ("", ["-t rank -r 1"]),
        ("-t rank lowrank -r 0.5 10", ["-t rank -r 0.5", "-t lowrank -r 10"]),
        ("-t rank lowrank -r 0.5", ["-t rank -r 0.5", "-t lowrank -r 10"]),
        ("-t dense basis sparse --alpha 0.25", ["-t dense", "-t basis", "-t sparse -s 0.25 --alpha 0.25"]),
    ),
)
def test_values_go_with_the_types_they_belong_to(folder, values, settings):
    runs = folder.plan(f"{values} --seeds 3 4 --datasets digits mnist")
    expected = {(setting, dataset, seed) for setting in settings for dataset in ("digits", "mnist") for seed in (3, 4)}
    assert {(run.setting, run.dataset, run.settings["seed"]) for run in runs} == expected
    assert len(runs) == len({run.name for run in runs}) == len(expected)


def test_any_option_can_be_varied_and_is_in_name_setting_and_command(folder):
    values = "-t dense sparse -s 0.5 --alpha 0.25 --vary lr 0.1 0.001 --vary pruning published --datasets digits"
    runs = folder.plan(values)
    dense, name = "nap-dense-digits-seed0-lr{}", "nap-sparse0.5-alpha0.25-digits-seed0-lr{}-pruningpublished"
    assert [run.name for run in runs] == [name.format(lr) for name in (dense, name) for lr in ("0.1", "0.001")]
    assert runs[3].setting == "-t sparse -s 0.5 --alpha 0.25 --lr 0.001 --pruning published"
    assert runs[3].varied == "--lr 0.001 --pruning published"
    assert runs[3].command.endswith("--lr 0.001 --pruning published --dataset digits")
    assert [run.settings["lr"] for run in runs] == [0.1, 0.001] * 2


def test_a_run_with_the_fast_recipe_is_no_longer_done_when_that_has_changed(folder, monkeypatch):
    before = folder.plan("--recipe fast --warmup 1")[0].settings
    assert (before["lr"], before["warmup"]) == (FAST.lr, 1)
    monkeypatch.setitem(sweep_plan.SHORT, "fast", replace(FAST, lr=7.0, warmup=9.0))
    after = folder.plan("--recipe fast --warmup 1")[0].settings
    assert {key for key, value in after.items() if before[key] != value} == {"lr"}


@pytest.mark.parametrize(
    "values, named",
    (
        ("--vary depth 1 2", "--vary depth"),
        ("-t sparse -r 0.5", "-r has no meaning"),
        ("--shard 3/2", "--shard"),
        ("-r 0.5 0.50000001", "share the name"),
        ("--table", "no run is done"),
        ("-- --output here", "--output"),
    ),
)
def test_bad_input_is_refused_in_one_line(folder, values, named, capsys):
    assert named in refusal(folder.run, values, capsys) and not folder.events()


@pytest.mark.parametrize(
    "content, named",
    (
        (b'{"runs": [', "not JSON"),
        (b"null", "not an object"),
        (b'{"note": "", "runs": 5}', "runs"),
        (b'{"note": "", "runs": [{"run": "a", "setting": "", "report": {"type": "rank"}, "log": []}]}', "run 0"),
    ),
)
def test_a_damaged_result_file_is_named_and_not_overwritten(folder, content, named, capsys):
    folder.results.mkdir()
    path = folder.results / "nap.json"
    path.write_bytes(content)
    for options in ("", "--table", "--dry-run"):
        line = refusal(folder.run, options, capsys)
        assert str(path) in line and named in line
    assert path.read_bytes() == content and not folder.events()


@pytest.mark.parametrize("name", ("settings.json", "report.json", "log.jsonl"))
@pytest.mark.parametrize("content", (b"{", b"null"))
def test_a_damaged_file_of_a_run_is_named_and_not_overwritten(folder, name, content, capsys):
    assert folder.run("--epochs 2") == 0
    (folder.results / "nap.json").unlink()
    path = folder.runs / "nap-rank1-default-seed0" / name
    path.write_bytes(content)
    line = refusal(folder.run, "--epochs 2", capsys)
    assert str(path.parent) in line and path.stem in line
    assert path.read_bytes() == content and not (folder.results / "nap.json").exists()


def test_runs_of_other_settings_are_not_taken_for_those_asked_for(folder, capsys):
    other = "holds a run of other settings"
    assert folder.run("--epochs 2") == 0
    assert f"nap.json {other} (lr None there, 0.5 here)" in refusal(folder.run, "--epochs 2 --lr 0.5", capsys)
    assert folder.run("--epochs 2 -- --device cpu --no-download") == 0
    (folder.results / "nap.json").unlink()
    assert f"seed0 {other} (epochs 2 there, 3 here)" in refusal(folder.run, "--epochs 3", capsys)
    (folder.runs / "nap-rank1-default-seed0" / "settings.json").unlink()
    assert "holds a run of no sweep" in refusal(folder.run, "--epochs 2", capsys)


def test_an_older_result_counts_with_the_defaults_of_missing_options_or_not_without_settings(folder, capsys):
    assert folder.run("--seeds 0 1") == 0
    path = folder.results / "nap.json"
    record = json.loads(path.read_text())
    first, second = record["runs"]
    del first["settings"]["pruning"], second["settings"]
    path.write_text(json.dumps(record))
    shutil.rmtree(folder.path / "ckpt")
    line = refusal(folder.run, "--seeds 0 1 -- --pruning published", capsys)
    assert "pruning gradual there, published here" in line
    assert folder.run("--seeds 0 1") == 0
    assert list(folder.count("finish")) == [second["run"]] and len(folder.reports()) == 2


def rows_of(tmp_path, *runs):
    write(tmp_path, "made_up", runs)
    return list(every_run(tmp_path, "made_up"))


def test_each_run_is_compared_with_the_dense_one_of_the_same_options_or_else_of_none(tmp_path):
    wide = {"varied": "--width 2"}
    ours = [entry("-t rank -r 1", 80), entry("-t rank -r 1 --width 2", 80, width=2) | wide]
    dense, dense_wide = entry("-t dense", 85), entry("-t dense --width 2", 88, width=2) | wide
    for runs, expected in (
        (ours, [None, None]),
        ([*ours, dense], [-5, -5, 0]),
        ([*ours, dense, dense_wide], [-5, -8, 0, 3]),
    ):
        assert [row["against_dense"] for row in summarise(rows_of(tmp_path, *runs))] == expected


def test_runs_of_other_recipes_or_epochs_are_rows_of_their_own(tmp_path):
    fast, longer = entry("-t rank", 70, recipe="fast"), entry("-t rank", 90, epochs=30)
    runs = rows_of(tmp_path, entry("-t dense", 80), entry("-t rank", 79), fast, longer)
    rows = summarise(runs)
    conditions = [(row["recipe"], row["epochs"], row["seeds"]) for row in rows]
    assert conditions == [("paper", 20, 1), ("paper", 20, 1), ("fast", 20, 1), ("paper", 30, 1)]
    assert [row["against_dense"] for row in rows] == [0, -1, None, None]
    assert markdown(runs[:3], ("accuracy",))[0] == "| test accuracy | recipe |"
    assert markdown([*runs[:2], runs[3]], ("accuracy",))[0] == "| test accuracy | epochs |"


def test_table_and_plot_are_written_beside_the_result(folder, monkeypatch, capfd):
    monkeypatch.delitem(sys.modules, "experiments.figures.style")
    pytest.importorskip("matplotlib")
    shown = "--columns setting parameters accuracy last_ten best against_dense seeds"
    assert folder.run(f"-t dense rank -r 0.5 1 --seeds 0 4 --epochs 12 {shown}") == 0
    out = capfd.readouterr().out
    assert "nap.json, nap.md, nap.csv, nap.png" in out
    assert (folder.results / "nap.png").read_bytes().startswith(b"\x89PNG")
    assert (folder.results / "nap.md").read_text() in out
    deviation = np.std([0, 16 / 7], ddof=1)
    accuracy, last_ten = f"{80.5 + 8 / 7:.2f} ± {deviation:.2f} %", "87.50 ± 0.00 %"  # epochs 3 to 12 of 80 + epoch
    assert f"| `-t rank -r 0.5` | 500 | {accuracy} | {last_ten} | 90.00 ± 0.00 % (1) | -1.50 | 2 |" in out
    with open(folder.results / "nap.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["-t dense", "-t rank -r 0.5", "-t rank -r 1"]
    means = [float(row["accuracy"]) for row in rows]
    assert means == pytest.approx([82 + 8 / 7, 80.5 + 8 / 7, 81 + 8 / 7])
    assert float(rows[0]["accuracy_deviation"]) == pytest.approx(deviation)


def test_a_sweep_of_a_training_script(folder, data, capfd):
    script = ROOT / "models" / "base_xcnn.py"
    thin = f"--epochs 1 --datasets imagefolder -- --width 0.125 --device cpu --data-root {data} --batch-size 9"
    assert folder.run(f"-t dense lowrank -r 2 --jobs 2 {thin}", script) == 0
    out = capfd.readouterr().out
    dense, lowrank = (run["report"] for run in folder.reports())
    assert dense["parameters"] == dense["dense_parameters"] == lowrank["dense_parameters"] > lowrank["parameters"]
    assert f"| {data.name} | Base | `-t lowrank -r 2` | {lowrank['parameters']:,} |" in out
    assert dense["command"].startswith("python models/base_xcnn.py --width 0.125 --device cpu --data-root DIR")
    result = (folder.results / "nap.json").read_text()
    assert str(folder.path) not in result and str(data) not in result
    shutil.rmtree(folder.path / "ckpt")
    assert folder.run(f"-t dense lowrank -r 2 {thin}", script) == 0
    assert "2 runs, 2 done" in capfd.readouterr().out
