"""`python -m linearconv_convert MODEL ...`, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linearconv_convert import convert
from linearconv_convert.__main__ import main
from models.base_xcnn import Base

ROOT = Path(__file__).resolve().parents[2]
BASE = f"{ROOT}/models/base_xcnn.py:Base"


def run(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse, for unknown options
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_network_is_converted_saved_and_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    torch.save({"model": Base().state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    torch.save(torch.randn(16, 3, 32, 32), tmp_path / "images.pt")
    command = [sys.executable, "-m", "linearconv_convert", BASE, "--weights", "weights.pt", "-t", "lowrank", "-r", "4"]
    command += ["--calibration", "images.pt", "--output", "small.pt", "--export", "small.onnx", "--form", "both"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 convolutions converted" in done.stdout and "multiply-adds" in done.stdout
    for form in ("dense", "features", "folded"):
        assert f"\n{form}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images.pt", "small-features.onnx", "small-folded.onnx", "small.pt", "weights.pt"]  # fmt: skip
    small = convert(Base(), "lowrank", rank=4, init="scratch")
    small.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))


def test_networks_of_torchvision_and_timm(tmp_path, capsys):
    pytest.importorskip("timm")
    output = tmp_path / "out.pt"
    for model in ("torchvision:squeezenet1_1", "timm:resnet10t"):
        code, out, _ = run(capsys, model, "--image-size", 64, "--output", output)
        assert code == 0 and "convolutions converted" in out and "random weights" in out
        assert output.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["resnet18"], "is not FILE.py:NAME"),
        (["nothing.py:Net"], "there is no file nothing.py"),
        ([f"{ROOT}/models/base_xcnn.py:Bass"], "defines no network Bass; it has Base, PoolTo"),
        (["torchvision:resnet1"], "torchvision cannot build resnet1"),
        ([BASE, "--weights", "missing.pt"], "missing.pt: No such file"),
        ([BASE, "-t", "lowrank", "-r", "1.5"], "integer of at least 1"),
        ([BASE, "-t", "rank", "-r", "3"], "share of the primary filters"),
        ([BASE, "--alpha", "2"], "alpha must lie"),
        ([BASE, "--skip", "conv9"], "no module of the model is called"),
        ([BASE, "--in-channels", "0"], "at least 1"),
        ([BASE, "-t", "dense"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "ckpt").exists()


def test_files_that_are_no_weights_are_told_and_run_no_code(tmp_path, capsys):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_run",))

    torch.save({"model": Malicious()}, tmp_path / "malicious.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(Base(width=0.5).state_dict(), tmp_path / "thin.pt")
    torch.save(convert(Base(), "rank").state_dict(), tmp_path / "small.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name, message in {
        "malicious.pt": "cannot be read as tensors",
        "text.pt": "cannot be read as tensors",
        "list.pt": "holds no state_dict",
        "thin.pt": "does not fit the network: size mismatch",
        "small.pt": "of a LinearConv network already",
    }.items():
        code, _, error = run(capsys, BASE, "--weights", tmp_path / name, "--output", tmp_path / "out.pt")
        assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "was_run").exists() and not (tmp_path / "out.pt").exists()
