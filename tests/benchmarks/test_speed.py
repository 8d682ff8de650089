"""What the benchmark of networks times is what training does."""

from argparse import Namespace

import pytest
import torch

from benchmarks.speed import captured, main, make_step
from benchmarks.speed_table import eager_and_captured
from linearconv import LinearConv
from linearconv_sparse import LinearConvSparse
from models.base_xcnn import Base


def test_a_training_step_of_sparse_layers_prunes_them():
    torch.manual_seed(0)
    options = Namespace(device="cpu", precision="float32", graphs=False)
    step, model, _ = make_step(lambda conv: Base(conv, width=0.25), LinearConvSparse, "train 50", options, False)
    layers = [module for module in model.modules() if isinstance(module, LinearConvSparse)]
    shares = []
    for _ in range(13):
        step()
        shares.append(sum(layer.pruned_fraction for layer in layers))
    assert [int(layer.steps) for layer in layers] == [13] * len(layers)
    changes = [step for step, (before, after) in enumerate(zip(shares, shares[1:], strict=False), 2) if before < after]
    assert changes == [5, 11]  # after these the masks of the 6th and of the 12th step are chosen


def test_graphs_are_refused_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed.py", "--graphs"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0].startswith("speed.py: --graphs goes with --device cuda")


def test_speeds_with_and_without_a_graph_share_a_cell():
    def rows(*tasks):
        return [{"network": "Base", "contender": "full rank, auto", "task": t, "ratio": r} for t, r in tasks]

    eager, captured = rows(("infer 1", 0.5)), rows(("infer 1", 1.25), ("train 1024", 2.0))
    assert eager_and_captured(eager, captured) == [
        "| network | train 1024 | infer 1 |",
        "| --- | ---: | ---: |",
        "| Base | - / 2.00 | 0.50 / 1.25 |",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", ["train 50", "infer 50"])
def test_a_captured_step_is_the_step(task):
    options = Namespace(device="cuda", precision="float32", graphs=True)
    step, model, loss = make_step(lambda conv: Base(conv, width=0.25), LinearConv, task, options, False)
    before = loss().item()
    replay = captured(step)
    for _ in range(20):
        replay()
    assert (loss().item() < before) == (task == "train 50")
