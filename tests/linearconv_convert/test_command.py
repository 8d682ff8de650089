"""`linearconv-convert MODEL ...`, as a user runs it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from linearconv_convert import convert
from linearconv_convert.__main__ import main
from models.base_xcnn import Base
from tests.helpers.commands import refusal
from tests.helpers.runs import ROOT

BASE = f"{ROOT}/models/base_xcnn.py:Base"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_network_is_converted_saved_and_exported(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"model": Base().state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    torch.save(torch.randn(16, 3, 32, 32), tmp_path / "images.pt")
    main(
        [BASE, *"--weights weights.pt -t lowrank -r 4 --skip feat.0 --calibration images.pt".split()]
        + "--output small.pt --export small.pt2 --form both".split()
    )
    out = capsys.readouterr().out
    assert "3 of 4 convolutions converted" in out and "multiply-adds" in out
    for form in ("deployed", "folded"):
        assert f"\n{form}" in out
    files = {"images.pt", "small-deployed.pt2", "small-folded.pt2", "small.json", "small.pt", "weights.pt"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert "load it into convert(model, **json.load(open('small.json')))" in out
    small = convert(Base(), **json.loads((tmp_path / "small.json").read_text()))
    small.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))


def test_a_budget_is_shared_out_and_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main([BASE, *"--budget 0.5 --of macs --curve curve.png --output small.pt --image-size 64".split()])
    out = capsys.readouterr().out
    assert "expected error" in out and "random weights" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_warning_is_one_line_on_stderr_and_the_default_output_is_in_ckpt(tmp_path, capsys):
    (tmp_path / "thin.py").write_text("import torch.nn as nn\nNet = lambda: nn.Sequential(nn.Conv2d(3, 64, 1))")
    main([f"{tmp_path}/thin.py:Net"])
    error = capsys.readouterr().err
    assert error.startswith("linearconv-convert: nothing was converted: 1 conv") and error.count("\n") == 1
    assert (tmp_path / "ckpt" / "Net-rank.pt").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("resnet18", "is not FILE.py:NAME"),
        (f"{BASE} --weights missing.pt", "No such file or directory: 'missing.pt'"),
        (f"{BASE} --calibration list.pt", "does not run on calibration"),
        (f"{BASE} --curve curve.png", "give one of them"),
        (f"{BASE} --output list.pt/small.pt", "list.pt"),
        (f"{BASE} --output small.json --budget 0.7", ".json is the ending of the settings"),
        (f"{BASE} --export missing/small.onnx", "there is no folder missing"),
        (f"{BASE} -t dense", "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, capsys):
    torch.save([1, 2], tmp_path / "list.pt")
    assert message in refusal(main, arguments.split(), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["list.pt"]


def test_a_stopped_export_leaves_no_file(tmp_path):
    lines = [
        "import os, signal",
        "from linearconv_convert import __main__, exporting",
        "def write(model, path, *settings):",
        "    path.write_bytes(b'unfinished')",
        "    os.kill(os.getpid(), signal.SIGTERM)",
        "exporting._write = write",
        f"__main__.main([{BASE!r}, '--export', 'small.pt2', '--output', 'small.pt'])",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    stopped = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True)
    assert stopped.returncode == 143 and {path.name for path in tmp_path.iterdir()} == {"small.json", "small.pt"}
