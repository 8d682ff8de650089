"""models/zoo_xcnn.py converts, trains, resumes and exports networks of a library, and refuses bad input in one line."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torchvision.models import get_model

from linearconv import LinearConv
from linearconv_convert import load_converted
from linearconv_convert.__main__ import main as convert_command
from linearconv_convert.networks import read_record
from tests.helpers.runs import ROOT
from tests.training.test_scripts import REPORT_KEYS
from tests.training.test_survival import assert_same_run, at_step
from training import library
from training.checkpoints import read_log
from training.trainer import Trainer

NETWORK = "--network torchvision:squeezenet1_1"  # with dropout
QUICK = f"{NETWORK} --calibrate 0 --no-amp"
UNTRAINED = f"{QUICK} --epochs 1 --lr 1e-12"  # nearly
CALIBRATED = f"{NETWORK} --calibrate 24 --no-amp"


def squeezenet_state(classes=3, seed=5):
    torch.manual_seed(seed)
    return get_model("squeezenet1_1", num_classes=classes).state_dict()


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with a state_dict of the network for three classes."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(squeezenet_state(), path)
    return path


def test_a_network_is_converted_to_a_budget_trained_and_reported(run, capsys, weights):
    folder = run("zoo", f"{CALIBRATED} --weights {weights} -t rank --budget 0.5 --epochs 2")
    out, err = capsys.readouterr()
    assert out.index("convolutions converted") < out.index("parameters  ") < out.index("epoch   1/2")
    assert all(line.startswith("zoo_xcnn.py: calibration gives only") for line in err.splitlines())
    report = report_of(folder)
    assert REPORT_KEYS <= set(report)
    assert 0.45 * report["dense_parameters"] < report["parameters"] <= 0.5 * report["dense_parameters"]
    assert (report["architecture"], report["type"], report["rank"]) == ("torchvision:squeezenet1_1", "rank", 1)
    assert (report["alpha"], report["budget"], report["of"]) == (None, 0.5, "parameters")
    assert (report["recipe"], report["init"], report["calibrate"]) == ("tune", "fit", 24)
    assert report["weights"].startswith("sha256:")
    assert [record["epoch"] for record in read_log(folder)] == [1, 2]


def test_training_starts_from_the_weights_and_with_scratch_from_random_ones(trained, weights):
    given = squeezenet_state()
    dense = trained("zoo", f"{UNTRAINED} --weights {weights} -t dense").model
    torch.testing.assert_close(dict(dense.state_dict()), dict(given))
    options, name = f"{UNTRAINED} --weights {weights} -t rank --alpha 0.9", "features.6.expand3x3"
    fitted, scratch = (trained("zoo", f"{options} --init {init}").model for init in ("fit", "scratch"))
    layer, filters = fitted.get_submodule(name), given[f"{name}.weight"]
    assert isinstance(layer, LinearConv) and 0 < (layer.weight - filters).norm() < 0.3 * filters.norm()
    assert (scratch.get_submodule(name).weight - filters).norm() > 0.5 * filters.norm()
    assert not torch.equal(scratch.get_submodule("classifier.1").weight, fitted.get_submodule("classifier.1").weight)


def test_weights_of_other_classes_start_a_new_classifier_and_are_no_teacher(trained, refused, capsys, tmp_path):
    given, path = squeezenet_state(classes=7), tmp_path / "seven.pth"
    torch.save({"model": given}, path)
    model = trained("zoo", f"{UNTRAINED} --weights {path} -t dense").model
    out = capsys.readouterr().out
    assert "another number of classes: classifier.1.weight, classifier.1.bias start at random" in out
    torch.testing.assert_close(model.features[0].weight.detach(), given["features.0.weight"])
    assert model.classifier[1].weight.shape[0] == 3
    line = refused("zoo", f"{QUICK} --weights {path} -t rank --distill")
    assert "--distill" in line and "classifier.1.weight" in line


@pytest.mark.parametrize("given, share", [("", 0.5), ("1", 1.0)])
def test_the_teacher_is_the_network_before_conversion_and_unchanged(trained, weights, given, share):
    trainer = trained("zoo", f"{QUICK} --weights {weights} -t rank --epochs 1 --distill {given}")
    teacher, before = trainer.teacher, squeezenet_state()
    assert trainer.recipe.distill == share
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())


def test_soft_targets_alone_take_the_teachers_classes(run, tmp_path):
    torch.save(squeezenet_state(classes=9), tmp_path / "nine.pth")
    options = f"{QUICK} --weights {tmp_path / 'nine.pth'} -t rank --epochs 1 --distill 1 --num-classes 9"
    state = torch.load(run("zoo", options) / "best.pt", weights_only=True)
    assert state["settings"]["num_classes"] == 9 and state["settings"]["distill"] == 1


def test_count_only_reads_no_data(run):
    options = f"{QUICK} -t rank --budget 0.6 --count-only --num-classes 5 --dataset imagefolder --image-size 64"
    report = report_of(run("zoo", options, dataset=False))
    assert report["num_classes"] == 5 and report["parameters"] <= 0.6 * report["dense_parameters"]


@pytest.mark.parametrize(
    "options",
    ["-t rank --calibrate 0 --distill", pytest.param("-t rank --budget 0.5 --calibrate 24", marks=pytest.mark.slow)],
)
def test_a_resumed_run_ends_like_the_uninterrupted_one_and_converts_once(run, capsys, monkeypatch, weights, options):
    options = f"{NETWORK} --no-amp --weights {weights} {options} --epochs 2"
    uninterrupted = run("zoo", options, "uninterrupted")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(6, lambda trainer: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(SystemExit) as stop:
            run("zoo", options, "resumed")
    assert stop.value.code == 143
    monkeypatch.setattr(library, "convert", None)  # the checkpoint has the record
    assert_same_run(run("zoo", f"{options} --resume", "resumed"), uninterrupted, epoch=2)


def test_a_run_is_resumed_with_its_own_weights_and_settings_only(run, refused, weights, tmp_path):
    options = f"{NETWORK} --calibrate 0 -t rank --distill --epochs 1 --weights"
    run("zoo", f"{options} {weights}")
    torch.save(squeezenet_state(seed=7), tmp_path / "other.pth")
    assert "weights sha256:" in refused("zoo", f"{options} {tmp_path / 'other.pth'} --resume")
    assert "budget None there, 0.6 here" in refused("zoo", f"{options} {weights} --budget 0.6 --resume")
    assert "temperature 4.0 there, 2.0 here" in refused("zoo", f"{options} {weights} --temperature 2 --resume")


@pytest.mark.slow
def test_two_processes_train_one_network(data, tmp_path, weights):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    options = f"{ROOT}/models/zoo_xcnn.py {CALIBRATED} --weights {weights} -t rank --budget 0.5 --distill --epochs 1"
    options += f" --dataset imagefolder --data-root {data} --output {tmp_path / 'two'} --batch-size 5 --device cpu"
    done = subprocess.run([sys.executable, *launcher, *options.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("convolutions converted") == 1
    assert report_of(tmp_path / "two")["budget"] == 0.5


@pytest.mark.parametrize("variant", ["-t dense", "-t rank --average 0.5"])
def test_the_network_is_loaded_from_a_checkpoint_alone(run, weights, variant, monkeypatch):
    found, evaluate = [], Trainer.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda trainer: found.append(trainer) or evaluate(trainer))
        folder = run("zoo", f"{QUICK} --weights {weights} {variant} --epochs 1")
    trained = (found[0].average or found[0].model).eval()
    model = load_converted(folder / "best.pt").eval()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images), trained(images))  # `trained` has another memory format
    assert read_record(folder / "best.pt")["image_size"] == 32
    convert_command([str(folder / "best.pt"), "--export", str(folder / "small.pt2")])
    exported = torch.export.load(folder / "small.pt2").module()
    torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ("-t rank", "--network"),
        (f"{NETWORK} -t dense --budget 0.5", "--budget"),
        (f"{NETWORK} --budget 0.5 --alpha 0.25", "leave it out"),
        (f"{NETWORK} --distill", "--weights"),
        (f"{NETWORK} --dense-epochs 2", "--dense-epochs"),
        (f"{NETWORK} --image-size 8 --calibrate 9", "does not run on"),
        ("--network torchvision:vit_b_16 -t dense", "does not take 3x32x32 images"),
    ],
)
def test_bad_input_is_refused_in_one_line(refused, options, message):
    assert message in refused("zoo", options)


def test_a_missing_library_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs the package timm: pip install timm" in refused("zoo", "--network timm:resnet26d")
