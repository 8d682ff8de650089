"""The benchmarks measure real training steps and inference passes, and add a sitting to the result file."""

import json
from argparse import Namespace
from functools import partial

import pytest
import torch

from benchmarks import deployment, measuring, speed
from benchmarks.contenders import NETWORKS, AsInThePaper
from linearconv import LinearConv
from linearconv_sparse import LinearConvSparse
from models.base_xcnn import Base
from tests.helpers.commands import refusal
from tests.helpers.layers import reference, relative_error

OPTIONS = Namespace(device="cpu", precision="float32")


def test_a_training_step_of_sparse_layers_prunes_them():
    torch.manual_seed(0)
    model = Base(LinearConvSparse, width=0.25)
    step = speed.make_step(model, "train 50", OPTIONS)
    layers = [module for module in model.modules() if isinstance(module, LinearConvSparse)]
    shares = []
    for _ in range(13):
        step()
        shares.append(sum(layer.pruned_fraction for layer in layers))
    assert [int(layer.steps) for layer in layers] == [13] * len(layers)
    changes = [step for step, (before, after) in enumerate(zip(shares, shares[1:], strict=False), 2) if before < after]
    assert changes == [5, 11]  # after these the masks of the 6th and of the 12th step are chosen


def test_the_papers_evaluation_gives_the_same_output():
    torch.manual_seed(0)
    layer, images = AsInThePaper(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    assert relative_error(layer(images), reference(layer, images)) < 1e-5


def test_graphs_are_refused_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed.py", "--graphs"])
    assert refusal(lambda _: speed.main(), [], capsys).startswith("speed.py: --graphs needs --device cuda")


def run(benchmark, output, monkeypatch, *arguments):
    monkeypatch.setitem(NETWORKS, "Base", partial(Base, width=0.125))
    arguments = ["--networks", "Base", "--seconds", "0.001", "--output", str(output), *arguments]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
    benchmark.main()
    return json.loads(output.read_text())


def test_every_call_adds_a_sitting(monkeypatch, tmp_path):
    for _ in range(2):
        record = run(speed, tmp_path / "result.json", monkeypatch, "--tasks", "train 50")
    first, second = (sitting["rows"] for sitting in record["sittings"])
    assert [row["contender"] for row in first] == [row["contender"] for row in second] == list(speed.CONTENDERS)
    table = measuring.markdown(record)
    assert table[0] == "| network | contender | train 50 |"
    ratios = sorted(rows[1]["ratio"] for rows in (first, second))
    assert table[2].endswith(f"({ratios[0]:.2f} to {ratios[1]:.2f}) |")


def test_the_deployed_network_and_its_onnx_file_are_measured(monkeypatch, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(deployment, "BATCHES", {"infer 8": 8})
    (sitting,) = run(deployment, tmp_path / "result.json", monkeypatch)["sittings"]
    size = {row["contender"]: row["bytes"] for row in sitting["rows"]}
    assert {"dense, onnxruntime", "deployed", "deployed, onnxruntime", "as in the paper"} < size.keys()
    floats = [tensor for tensor in Base(width=0.125).state_dict().values() if tensor.is_floating_point()]
    assert size["dense"] == 4 * sum(map(torch.numel, floats)) + 4 * 8  # four int64 counters of BatchNorm
    assert size["layers"] < size["dense"] and size["dense, folded"] < size["dense"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", ["train 50", "infer 50"])
def test_a_captured_step_updates_the_parameters_in_training_only(task):
    options = Namespace(device="cuda", precision="float32")
    model = Base(LinearConv, width=0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = speed.make_step(model, task, options)
    replay = speed.captured(step)
    for _ in range(20):
        replay()
    changed = any(not torch.equal(tensor.cpu(), before[name]) for name, tensor in model.state_dict().items())
    assert changed == (task == "train 50")
