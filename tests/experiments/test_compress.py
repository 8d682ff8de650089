"""Compression studies: every way is measured once at every size, with equal parameters and equal epochs."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
import torch.nn as nn

from baselines import method_of
from experiments.compress import __main__ as compress
from experiments.compress.table import losses, markdown
from experiments.compress.ways import WAYS, Spatial, SVDPair, Tucker, build, product
from linearconv_convert import ConversionError
from linearconv_convert.batch_norm import refresh_batch_norm
from linearconv_convert.weights import root_of_layer
from models.base_xcnn import Base
from tests.helpers.commands import refusal
from tests.helpers.entries import entry
from training.counting import count_parameters
from training.errors import UsageError
from training.report import ROOT


@pytest.mark.parametrize("way", WAYS)
def test_a_way_has_at_most_the_parameters_asked_for_and_loses_less_with_more(way):
    if way == "pruning":
        pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    dense, errors = Base(width=0.25), []
    refresh_batch_norm(dense, [torch.randn(64, 3, 32, 32)])
    batches = [torch.randn(64, 3, 32, 32) for _ in range(2)]
    with torch.no_grad():
        expected = dense(batches[0])
        for share in (0.3, 0.9):
            small = WAYS[way](dense, share, batches)
            assert 0.85 * share < count_parameters(small) / count_parameters(dense) <= share
            errors.append((small(batches[0]) - expected).norm() / expected.norm())
    assert errors[1] < errors[0] and errors[1] < 0.5
    with pytest.raises((UsageError, ConversionError), match="0.001 cannot be reached"):
        WAYS[way](dense, 0.001, batches)


@pytest.mark.parametrize("form", (SVDPair, Spatial, Tucker))
@pytest.mark.parametrize("kernel", (3, 1))
def test_a_factorised_layer_computes_what_its_factors_stand_for_and_all_of_them_are_exact(form, kernel):
    layer = nn.Conv2d(6, 8, kernel, stride=2, padding=kernel // 2, dtype=torch.float64)
    parts = form(layer.weight.detach(), root_of_layer(layer), None)
    batch = torch.randn(2, 6, 11, 9, dtype=torch.float64)
    for rank in (parts.ranks[len(parts.ranks) // 2], parts.ranks[-1]):
        factors = parts.factors(rank)
        weight = product(factors)
        expected = nn.functional.conv2d(batch, weight, layer.bias, 2, kernel // 2)
        torch.testing.assert_close(build(layer, factors).double()(batch), expected, rtol=1e-5, atol=1e-5)
        lost = ((weight - layer.weight).square().sum() / layer.weight.square().sum()).item()
        assert lost == pytest.approx(1 - parts.kept(rank), abs=1e-6)
    assert lost == pytest.approx(0, abs=1e-6)


def test_scratch_networks_have_the_parameters_and_dense_ones_come_first(tmp_path, monkeypatch):
    options = ["--name", "t", "--budgets", "0.5", "--seeds", "0", "1", "--epochs", "3", "--tune", "2"]
    words = [str(ROOT / "models" / "base_xcnn.py") + ":Base", *options, "--ckpt", str(tmp_path)]
    parser_words = [*words, "--ways", "scratch-linearconv", "scratch-thinner", "scratch-ghost", "linearconv"]
    seen = []

    def carry_out(runs, options, show, **kept):
        seen.append(runs)
        return 0

    monkeypatch.setattr(compress, "carry_out", carry_out)
    assert compress.main([*parser_words, "--dataset", "digits"]) == 0
    first, every = seen
    assert [run.setting for run in first] == ["-t dense"] * 2
    scratch = [run for run in every[2:] if run.script.name == "base_xcnn.py"]
    assert len(scratch) == 6
    whole = count_parameters(Base())
    for run in scratch:
        values = {"rank": None, "sparsity": None, "type": run.settings["type"], "alpha": run.settings["alpha"]}
        share = count_parameters(method_of(Namespace(**values)).build(Base, width=run.settings["width"])) / whole
        assert share == pytest.approx(0.5, abs=0.03), run.setting


def test_the_table_shows_the_points_lost_and_marks_the_least():
    unit = {"budget": 0.5, "parameters": 500, "macs_inference": 9, "teacher": False}
    runs = [entry(accuracy=90), entry(accuracy=92, seed=1)]
    for seed, at_once, tuned in ((0, 89, 89.5), (1, 90, 92.5)):
        for way, less in (("linearconv", 0), ("svd", 1)):
            lost = at_once - 4 * less
            runs.append(entry("--way x", lost, seed=seed, epochs=0, way=way, speed={"torch": 1.5}, **unit))
            runs.append(entry("--way x", tuned - less, seed=seed, epochs=2, way=way, **unit))
        runs.append(entry("--way x", 88, seed=seed, epochs=2, way="svd", tune_lr=1e-3, **unit))
        runs.append(entry("--way x", 91, seed=seed, epochs=6, way="svd", **unit))
        runs.append(entry("-t rank", 88, seed=seed, epochs=3, parameters=495))
    runs.append(entry("--way x", 85, epochs=6, way="linearconv", **unit))
    found, accuracy = losses(runs)
    assert accuracy == 91 and found["LinearConv, at once"] == {0.5: [1, 2]}
    assert found["SVD pair, 2 epochs"] == {0.5: [1.5, 0.5]}
    assert found["SVD pair, 2 epochs, lr 0.001"] == {0.5: [2, 4]}
    assert found["LinearConv from scratch, 3 epochs"] == {0.5: [2, 4]}
    lines = markdown(runs)
    assert "| LinearConv, at once | **1.50 ± 0.71** |" in lines and "| SVD pair, at once | 5.50 ± 0.71 |" in lines
    assert "| LinearConv, 2 epochs | **0.00 ± 0.71** |" in lines
    assert "| SVD pair, 2 epochs, lr 0.001 | 3.00 ± 1.41 |" in lines  # no other way has this training
    assert "| SVD pair, 6 epochs | 0.00 ± 1.41 |" in lines  # of more seeds than the other way
    assert "| LinearConv, 6 epochs | 5.00 |" in lines
    assert "| LinearConv | 50 % | 500 | 9 | 1.50 | not measured |" in lines


@pytest.mark.slow
def test_a_study_of_the_digits_is_trained_once_resumed_and_drawn(tmp_path, capfd):
    command = ["models/base_xcnn.py:Base", "--name", "try", "--ckpt", str(tmp_path / "ckpt")]
    command += ["--results", str(tmp_path), "--epochs", "2", "--tune", "1", "--budgets", "0.5", "--calibrate", "100"]
    command += ["--ways", "dense", "linearconv", "spatial", "scratch-ghost"]
    training = ["--dataset", "digits", "--width", "0.25", "--device", "cpu"]
    assert compress.main([*command, *training]) == 0
    record = json.loads((tmp_path / "try.json").read_text())
    done = {run["setting"] for run in record["runs"]}
    for way in ("linearconv", "spatial"):
        words = f"--way {way} --budget 0.5"
        assert {words, f"{words} --tune 1", f"{words} --tune 1 --teacher"} <= done
    assert {"-t dense", "--way dense --budget 1", "--way dense --budget 1 --tune 1"} <= done
    assert {run["report"]["epochs"] for run in record["runs"] if "way" not in run["report"]} == {2, 3}
    assert "\n".join(markdown(record["runs"])) in capfd.readouterr().out
    shutil.rmtree(tmp_path / "ckpt")
    assert compress.main([*command, *training]) == 0
    assert f"{len(done)} runs, {len(done)} done" in capfd.readouterr().out


@pytest.mark.parametrize(
    "words, named",
    (
        ("models/none.py:Base --name none --dataset digits", "none.py"),
        ("models/base_xcnn.py:Base --name none", "--dataset"),
        ("models/base_xcnn.py:Base --name none --dataset digits --recipe paper", "--recipe"),
    ),
)
def test_bad_input_ends_in_one_line(words, named, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert named in refusal(compress.main, words.split(), capsys)
