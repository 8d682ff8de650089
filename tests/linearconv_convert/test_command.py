"""`linearconv-convert MODEL ...`, as a user runs it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from linearconv_convert import convert
from linearconv_convert.__main__ import main
from models.base_xcnn import Base

ROOT = Path(__file__).resolve().parents[2]
BASE = f"{ROOT}/models/base_xcnn.py:Base"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_network_is_converted_saved_and_exported(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("linearconv_convert.__main__.milliseconds", lambda run, images: len(run(images)))
    torch.manual_seed(0)
    torch.save({"model": Base().state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    torch.save(torch.randn(16, 3, 32, 32), tmp_path / "images.pt")
    main(
        [BASE, *"--weights weights.pt -t lowrank -r 4 --skip feat.0 --calibration images.pt".split()]
        + "--output small.pt --export small.onnx --form both".split()
    )
    out = capsys.readouterr().out
    assert "3 of 4 convolutions converted" in out and "multiply-adds" in out
    for form in ("dense", "deployed", "folded"):
        assert f"\n{form}" in out
    files = {"images.pt", "small-deployed.onnx", "small-folded.onnx", "small.pt", "weights.pt"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert "convert(model, 'lowrank', rank=4, skip=['feat.0'], init='scratch')" in out
    small = convert(Base(), "lowrank", rank=4, skip=["feat.0"], init="scratch")
    small.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))


def test_a_budget_is_shared_out_drawn_and_loaded_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = "--budget 0.5 --of macs --curve curve.png --output small.pt --image-size 64".split()
    main([BASE, *words])
    out = capsys.readouterr().out
    assert "expected error" in out and (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "convert(model, 'rank', **json.load(open('small.json')), init='scratch')" in out
    small = convert(Base(), "rank", **json.loads((tmp_path / "small.json").read_text()), init="scratch")
    small.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))


def test_what_is_not_done_is_one_line_on_stderr(tmp_path, capsys):
    (tmp_path / "thin.py").write_text("import torch.nn as nn\nNet = lambda: nn.Sequential(nn.Conv2d(3, 64, 1))")
    main([f"{tmp_path}/thin.py:Net"])
    error = capsys.readouterr().err
    assert error.startswith("linearconv-convert: nothing was converted: 1 conv") and error.count("\n") == 1


def test_matplotlib_is_named_where_it_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        main([BASE, "--budget", "0.5", "--curve", "curve.png"])
    assert capsys.readouterr().err.endswith("pip install matplotlib (--help lists the options)\n")
    assert not list(tmp_path.iterdir())


def test_a_network_of_a_library_has_random_weights_and_images_of_its_size(tmp_path, capsys):
    main(["torchvision:squeezenet1_1", "--image-size", "64"])
    out = capsys.readouterr().out
    assert "convolutions converted" in out and "random weights" in out
    assert (tmp_path / "ckpt" / "squeezenet1_1-rank.pt").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("resnet18", "is not FILE.py:NAME"),
        (f"{BASE} --weights missing.pt", "No such file or directory: 'missing.pt'"),
        (f"{BASE} --calibration missing.pt", "No such file or directory: 'missing.pt'"),
        (f"{BASE} --calibration list.pt", "holds no images"),
        (f"{BASE} --calibration grey.pt", "does not run on calibration"),
        (f"{BASE} -t lowrank", "lowrank needs a rank"),
        (f"{BASE} --budget 0.01", "budget=0.01 cannot be reached: the smallest size is 0."),
        (f"{BASE} --budget 0.5 --alpha 0.5", "choose alpha: leave it out"),
        (f"{BASE} --curve curve.png", "give one of them"),
        (f"{BASE} --output list.pt/small.pt", "list.pt"),
        (f"{BASE} -t lowrank -r 1.5", "integer of at least 1"),
        (f"{BASE} -t rank -r 3", "share of the primary filters"),
        (f"{BASE} -t sparse -r 3", "rank has no meaning"),
        (f"{BASE} --alpha 2", "alpha must be in"),
        (f"{BASE} --skip conv9", "no module of the model is called"),
        (f"{BASE} --num-classes 0", "--num-classes: must be at least 1, got 0"),
        (f"{BASE} --in-channels 0", "--in-channels: must be at least 1, got 0"),
        (f"{BASE} --image-size -1", "--image-size: must be at least 1, got -1"),
        (f"{BASE} --image-size big", "--image-size: invalid positive_int value"),
        (f"{BASE} -t dense", "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, capsys):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.randn(2, 1, 32, 32), tmp_path / "grey.pt")
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"list.pt", "grey.pt"}


def test_the_help_of_a_rank_says_what_happens_without_one(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 1; lowrank has none, give -r, --budget or --error)" in shown and "1, 10" not in shown
    for instead in ("-r 4", "--budget 0.7", "--error 0.5"):
        main([BASE, "-t", "lowrank", *instead.split(), "--output", "small.pt"])
    with pytest.raises(SystemExit):
        main([BASE, "-t", "lowrank", "--output", "small.pt"])
    assert "lowrank needs a rank" in capsys.readouterr().err
