"""Compression studies: every way is trained once, with the parameters of the way that it is compared with."""

import json
import sys

import pytest
import torch
import torch.nn as nn

from experiments.compress import __main__ as compress
from experiments.compress.methods import (
    BUDGETED,
    CALIBRATED,
    CONVERSIONS,
    FROM_SCRATCH,
    channel_pruning,
    fit_quality,
    truncated_svd,
    tucker,
)
from experiments.compress.table import markdown
from linearconv_convert import convert
from models.base_xcnn import Base
from training.counting import count_parameters
from training.report import ROOT


def test_a_study_trains_every_way_once(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compress, "ROOT", tmp_path)
    for package in ("tensorly", "torch_pruning"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "results").mkdir()
    script = ROOT / "models" / "base_xcnn.py"
    own = [f"{script}:Base", "--name", "try", "--epochs", "2", "--finetune", "1"]
    training = ["--dataset", "imagefolder", "--data-root", str(data), "--batch-size", "9", "--width", "0.0625"]
    assert compress.main([*own, "--", *training, "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "results" / "try.json").read_text())
    epochs = {"converted": 1, "other": 1, "from scratch": 2}
    assert all(len(row["accuracies"]) == 1 + epochs[row["kind"]] for row in record["rows"])
    assert len(record["rows"]) == 1 + len(CONVERSIONS) + len(CALIBRATED) + len(BUDGETED) + 1 + len(FROM_SCRATCH)
    sizes = {row["method"]: row["parameters"] for row in record["rows"]}
    for method in BUDGETED:
        budgeted = sizes[method.replace("alpha", "budget as alpha") + ", calibrated"]
        assert 0.9 * sizes[method] < budgeted <= sizes[method]
    assert "Tucker is left out" in capsys.readouterr().out
    assert compress.main([*own, "--", *training, "--device", "cpu"]) == 0
    assert " loss " not in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "try.json").read_text())["rows"] == record["rows"]
    assert compress.main(["--name", "try", "--table"]) == 0
    assert "\n".join(markdown(record)) in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, named",
    (
        ("--name none --table", "none.json"),
        ("models/base_xcnn.py --name none", "models/FILE.py:NAME"),
        ("models/base_xcnn.py:Base --name none", "--dataset"),
    ),
)
def test_bad_input_ends_in_one_line(words, named, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    try:
        code = compress.main(words.split())
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and named in line


def test_the_svd_is_exact_for_filters_of_low_rank_and_has_no_more_parameters():
    dense = Base(width=0.25).eval()
    with torch.no_grad():
        for layer in (layer for layer in dense.modules() if isinstance(layer, nn.Conv2d)):
            layer.weight.copy_(torch.randn(len(layer.weight), 1, 1, 1) * layer.weight[:1])
    small = convert(dense, "rank")
    svd = truncated_svd(dense, small)
    assert 0.9 * count_parameters(small) < count_parameters(svd) <= count_parameters(small)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(svd(images), dense(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make, package", ((tucker, "tensorly"), (channel_pruning, "torch_pruning")))
def test_other_methods_have_no_more_parameters(make, package):
    pytest.importorskip(package)
    dense = Base(width=0.25).eval()
    small = convert(dense, "rank")
    other = make(dense, small)
    assert 0.85 * count_parameters(small) < count_parameters(other) <= count_parameters(small)
    assert other(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_fits_are_between_the_optimum_and_regression_on_the_first_filters():
    dense = Base(width=0.25)
    for layer in fit_quality(dense, convert(dense, "rank")):
        assert layer["optimum"] <= layer["fitted"] * (1 + 1e-6) <= layer["first_filters"]
