"""The scripts: they train, save, resume exactly, report, and answer bad input with one line and exit code 2."""

import json
import sys

import pytest
import torch

import training
from tests.helpers.runs import SCRIPTS
from training import checkpoints, options
from training.checkpoints import read_log
from training.errors import UsageError

RUNS = (  # every script, and every variant
    ("base", f"-t rank -r 1 --seed {2**63 - 1}"),
    ("base", "-t dense"),
    ("base", "-t ghost"),
    ("vgg", "-t lowrank -r 10"),
    ("allconv", "-t sparse -s 0.5"),
    ("resnet", "-t rank -r 1"),
    ("resnext", "-t rank -r 0.25"),
    ("mobilenetv2", "-t lowrank -r 10"),
    ("squeezenet", "-t rank -r 1"),
)
REPORT_KEYS = set(
    "architecture type rank sparsity alpha dataset num_classes seed epochs parameters dense_parameters "
    "nonzero_parameters flops_paper flops macs_inference macs_dense test_accuracy best_test_accuracy best_epoch "
    "train_loss seconds images_per_second device torch git_commit command".split()
)


@pytest.mark.parametrize("script, variant", RUNS)
def test_every_script_and_variant_counts_trains_resumes_and_reports(script, variant, run, capsys):
    small = f"{variant} --width 0.125 --epochs"
    folder = run(script, f"{small} 2")
    out = capsys.readouterr().out
    assert out.index("parameters") < out.index("epoch   1/2") < out.index("test accuracy") < out.index("report: ")
    first = json.loads((folder / "report.json").read_text())
    run(script, f"{small} 3 --resume")
    report = json.loads((folder / "report.json").read_text())
    log = read_log(folder)
    assert REPORT_KEYS <= set(report)
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert (report["epochs"], report["num_classes"]) == (3, 3)
    assert report["seconds"] > first["seconds"]
    assert report["best_test_accuracy"] == max(record["test_accuracy"] for record in log)
    assert report["test_accuracy"] * 12 / 100 == pytest.approx(round(report["test_accuracy"] * 12 / 100))
    for key in ("parameters", "dense_parameters", "nonzero_parameters", "flops_paper", "flops", "macs_inference"):
        assert isinstance(report[key], int) and report[key] > 0
    if "dense" in variant:
        assert report["parameters"] == report["dense_parameters"]


def test_the_network_learns_and_the_sparse_target_is_reached(run):
    folder = run("base", "-t sparse -s 0.5 --width 0.5 --epochs 12")
    report = json.loads((folder / "report.json").read_text())
    log = read_log(folder)
    assert report["best_test_accuracy"] >= 90
    assert log[-1]["pruned"] == pytest.approx(0.5, abs=0.01)
    state = torch.load(folder / "checkpoint-0012.pt", weights_only=True)["model"]
    pruned = sum(int((mask == 0).sum()) for name, mask in state.items() if name.endswith("mask"))
    assert report["nonzero_parameters"] == report["parameters"] - pruned


@pytest.mark.parametrize("bfloat16", (True, False))
def test_bfloat16_is_the_default_where_the_cpu_computes_in_it(monkeypatch, bfloat16):
    monkeypatch.setattr(options, "cpu_computes_in_bfloat16", lambda: bfloat16)
    parser = options.make_parser(*SCRIPTS["base"])
    for arguments, expected in (([], bfloat16), (["--amp"], True), (["--no-amp"], False)):
        assert options.parse_arguments(parser, ["--device", "cpu", *arguments]).amp is expected


def test_count_only_prints_and_writes_counts_without_data(run, capsys):
    folder = run("vgg", "-t rank -r 1 --count-only --data-root nowhere", dataset=False)
    out = capsys.readouterr().out
    assert "4,922,282" in out and "9,231,114" in out and "2.398 B" in out
    report = json.loads((folder / "report.json").read_text())
    assert (report["parameters"], report["dense_parameters"]) == (4922282, 9231114)
    assert report["flops_paper"] == 2397909142
    assert {path.name for path in folder.iterdir()} == {"report.json", "run.lock"}


def test_count_only_takes_classes_channels_and_network(run, capsys):
    run("vgg", "-t dense --count-only --num-classes 100 --in-channels 1", dataset=False)
    assert f"{9231114 + 90 * 513 - 2 * 64 * 9:,}" in capsys.readouterr().out
    run("resnet", "-t dense --count-only --network ResNet34", "other", dataset=False)
    assert "21,282,122" in capsys.readouterr().out
    run("vgg", "-t dense --count-only --dataset mnist", "third", dataset=False)
    assert f"{9231114 - 2 * 64 * 9:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting, message",
    (
        ("base -t full", "--type"),
        ("base -t sparse -r 10", "no meaning"),
        ("base --epochs 0", "--epochs"),
        ("base --seed -1", "--seed"),
        ("base --device cuda:99", "--device"),
        ("base --num-classes 5", "--count-only"),
        ("base --resume", "no checkpoint"),
        ("base --count-only --resume", "--resume"),
        ("vgg --image-size 8", "3x8x8"),
        ("resnet --width 0.125 --image-size 8 --batch-size 1", "BatchNorm"),  # ends in 1x1 maps
    ),
)
def test_wrong_options_are_refused(setting, message, refused):
    assert message in refused(*setting.split(maxsplit=1))


def test_missing_data_are_refused_and_named(refused, tmp_path):
    line = refused("base", f"--dataset imagefolder --data-root {tmp_path / 'nothing'}", dataset=False)
    assert str(tmp_path / "nothing") in line
    line = refused("base", f"--dataset cifar10 --no-download --data-root {tmp_path / 'nothing'}", dataset=False)
    assert "cifar-10-python.tar.gz" in line and str(tmp_path / "nothing") in line


def test_a_folder_that_holds_a_run_is_not_written_over(run, refused):
    folder = run("base", "-t dense --width 0.125 --epochs 2")
    before = (folder / "report.json").read_bytes()
    assert "holds a finished run" in refused("base", "-t dense --width 0.125 --epochs 2")
    assert "more --epochs" in refused("base", "-t dense --width 0.125 --epochs 1 --resume")
    assert (folder / "report.json").read_bytes() == before


def test_an_output_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused("base", "-t dense", "file")
    assert "cannot be written" in refused("base", "-t dense", "file/below")


def test_resume_auto_begins_resumes_and_ends(run, capsys):
    command = "base", "-t rank --width 0.125 --epochs 2 --resume auto"
    run.folder("run").mkdir()
    checkpoints.write_log(run.folder("run"), [{"epoch": 1}])  # of a run that ended before its first checkpoint
    folder = run(*command)
    assert "resuming" not in capsys.readouterr().out
    (folder / "report.json").unlink()
    (folder / "checkpoint-0002.pt").unlink()  # as a run that was stopped after its first epoch
    for done in ("resuming after epoch 1", "resuming after epoch 2"):
        run(*command)
        assert done in capsys.readouterr().out
    assert [record["epoch"] for record in read_log(folder)] == [1, 2] and (folder / "report.json").exists()


def test_finished_runs_in_the_default_folder_are_numbered_and_an_unfinished_one_is_named(tmp_path):
    default = tmp_path / "run"
    for expected in ("run", "run-2", "run-3"):
        with checkpoints.open_folder(default, numbered=True) as folder:
            assert folder.name == expected
            checkpoints.save(folder, {"epoch": 1, "batch": 0, "history": []})
        with pytest.raises(UsageError, match=f"{expected} holds an unfinished run: give --resume"):
            with checkpoints.open_folder(default, numbered=True):
                pass
        with checkpoints.open_folder(default, "always", numbered=True) as folder:
            assert folder.name == expected
            checkpoints.write_json(folder / "report.json", {})


def test_without_cifar10_the_digits_are_trained_on_and_said_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "-t lowrank -r 4 --width 0.25 --epochs 2 --no-download --data-root none --device cpu"
    monkeypatch.setattr(sys, "argv", ["models/base_xcnn.py"])
    training.main(*SCRIPTS["base"], options.split())
    out = capsys.readouterr().out
    assert "CIFAR10 is not available" in out and "bundled digits" in out
    report = json.loads((tmp_path / "ckpt/base_xcnn/Base-width0.25-lowrank4-digits-seed0/report.json").read_text())
    assert report["dataset"] == "digits" and report["test_accuracy"] > 20
