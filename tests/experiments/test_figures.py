"""Figures: each is drawn from results alone, and reported as left out where they are missing."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from experiments import correlation
from experiments.figures import __main__ as figures
from experiments.results import comparable, describe, every_run, method
from linearconv import LinearConv
from models.base_xcnn import Base
from tests.helpers.entries import entry, write
from training.checkpoints import load_newest
from training.report import ROOT

has_matplotlib = importlib.util.find_spec("matplotlib")
needs_matplotlib = pytest.mark.skipif(not has_matplotlib, reason="figures need matplotlib: pip install matplotlib")
THE_PAPERS = [entry(), entry("-t rank -r 1", reg_weight=0), entry("-t rank -r 1"), entry("-t lowrank -r 10")]


@pytest.fixture
def results(tmp_path):
    """A folder with made-up results for every figure."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "table1_counts.json").write_text((ROOT / "results" / "table1_counts.json").read_text())
    write(folder, "base_paper_cifar10", THE_PAPERS)
    write(folder, "table1_base_fast", [entry(width=0.5, nonzero_parameters=300), *THE_PAPERS, entry(seed=1)])
    varied = {
        "alpha": [entry("-t rank", alpha=value) for value in (0.25, 0.5)],
        "rank": [entry("-t rank", rank=0.5), entry("-t rank"), entry("-t lowrank", rank=4)],
        "reg": [entry("-t rank", reg_weight=value) for value in (0, 0.01)],
        "sparsity": [entry("-t sparse", sparsity=value) for value in (0.25, 0.5)],
    }
    for name, runs in varied.items():
        write(folder, f"ablation_{name}", [entry(), *runs])
    layers = [{"layer": 1, "name": "feat.0.0", "elements": 27, "filters": 4, "primary": None}] * 2
    packed = {"hundredths": ["50 -25 0", "0 0", "100"], "mean_absolute": {"all": 0.3}}
    blocks = {"primary": 2, "mean_absolute": {"all": 0.3, "primary": 0.5, "secondary": 1.0}}
    runs = [{"name": "dense", "layers": [layer | packed for layer in layers]}]
    runs += [{"name": name, "layers": [layer | packed | blocks for layer in layers]} for name in ("L", "Lr")]
    (folder / "correlation_base.json").write_text(json.dumps({"runs": runs}))
    unit = {"way": "svd", "budget": 0.5, "teacher": True}
    write(folder, "compression_base", [entry(), *(entry("--way svd", epochs=epochs, **unit) for epochs in (0, 2))])
    return folder


# ---- the command ---------------------------------------------------------------------------------------------------


@needs_matplotlib
def test_every_figure_is_drawn(results, capsys):
    assert figures.main(["--results-folder", str(results)]) == 0
    out = capsys.readouterr().out
    assert "left out" not in out and out.count("written") == len(figures.FIGURES)
    drawn = {path.name for path in (results / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in figures.FIGURES for kind in ("svg", "png")}


@needs_matplotlib
def test_a_figure_without_results_is_left_out_in_a_line(results, capsys):
    for path in results.glob("ablation_*.json"):
        path.unlink()
    (results / "correlation_base.json").unlink()
    write(results, "base_paper_cifar10", [entry("-t rank")])
    names = ["ablations", "correlation", "training_curves", "table1"]
    assert figures.main([*names, "--results-folder", str(results)]) == 0
    assert figures.main(["accuracy_parameters", "--results-folder", str(results), "--results", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["left out"] * 3 + ["written", "left out"]
    assert (
        "ablation_alpha.json" in lines[0]
        and "experiments.correlation" in lines[1]
        and "dense" in lines[2]
        and "none" in lines[4]
    )
    assert not (results / "figures" / "ablations.svg").exists()


@pytest.mark.parametrize(
    "words, named",
    (
        ("tabel1", "tabel1"),
        ("--results-folder nowhere", "nowhere"),
        ("compression --results-folder FOLDER", "compression_base.json is not JSON"),
        ("table1 --results-folder FOLDER", "table1_counts.json has no valid 'rows'"),
    ),
)
def test_bad_input_ends_in_one_line(words, named, results, monkeypatch, capsys):
    (results / "compression_base.json").write_text("{")
    (results / "table1_counts.json").write_text("{}")
    try:
        code = figures.main(words.replace("FOLDER", str(results)).split())
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and (named in line or "pip install matplotlib" in line)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert figures.main(["table1", "--results-folder", str(results)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


# ---- what they show ------------------------------------------------------------------------------------------------


@needs_matplotlib
def test_the_papers_accuracies_are_beside_runs_with_its_recipe_alone(results):
    from experiments.figures import table1

    (row,) = table1.draw(results).subfigs
    assert len([line for line in row.axes[0].lines if line.get_markerfacecolor() == "white"]) == 3
    record = json.loads((results / "base_paper_cifar10.json").read_text())
    for run in record["runs"]:
        run["report"]["recipe"] = "fast"
    write(results, "base_paper_cifar10", record["runs"])
    write(results, "table1_base_fast", [])
    (row,) = table1.draw(results).subfigs
    assert not [line for line in row.axes[0].lines if line.get_markerfacecolor() == "white"]


@needs_matplotlib
def test_a_sweep_has_a_row_for_each_group_and_a_legend_of_all_methods():
    from experiments.figures.accuracy_parameters import figure_of

    many = {f"rank {rank}": [entry("-t lowrank", rank=rank)] for rank in range(20)}
    few = {"rank 0": many["rank 0"]}
    groups = {("Base", "cifar10", "fast", 20): many, ("VGG11", "svhn", "paper", 9): few}
    base, vgg = (axes for axes in figure_of(groups).axes if axes.get_legend())
    assert [len(axes.get_legend().get_texts()) for axes in (base, vgg)] == [20, 1]


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run, name",
    (
        (entry(width=0.5), "Conv, width 0.5"),
        (entry("-t rank -r 1", reg_weight=0), "-L"),
        (entry("-t rank -r 1 --no-amp --alpha 0.5"), "-Lr, --no-amp"),
        (entry("-t ghost", alpha=0.25), "Ghost module, alpha 0.25"),
        (entry("-t rank -r 0.5", rank=0.5), "rank 0.5 P"),
        (entry("-t lowrank -r 10", reg_weight=0), "rank 10, no regulariser"),
    ),
)
def test_settings_are_called_as_in_the_paper(run, name):
    assert method(run) == name


def test_runs_compare_that_share_network_data_recipe_and_epochs(tmp_path):
    write(tmp_path, "one_cifar100", [entry(dataset="imagefolder"), entry(seed=1, recipe="fast")])
    twice = entry("-t rank", seed=1)
    write(tmp_path, "two", [entry("-t rank"), twice, twice, entry(epochs=9)])
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    groups = comparable(every_run(tmp_path))
    assert set(groups) == {
        ("Base", "cifar100", "paper", 20),
        ("Base", "cifar10", "fast", 20),
        ("Base", "cifar10", "paper", 20),
        ("Base", "cifar10", "paper", 9),
    }
    methods = groups["Base", "cifar10", "paper", 20]
    assert {name: len(runs) for name, runs in methods.items()} == {"-Lr": 2}
    text = describe(("Base", "cifar10", "paper", 20), map(len, methods.values()))
    assert text == "Base, CIFAR-10, the paper's recipe, 20 epochs, 2 seeds"


def test_the_data_set_of_an_imagefolder_is_the_one_that_the_run_or_else_its_file_names(tmp_path):
    folder = {"dataset": "imagefolder"}
    write(tmp_path, "base_cifar10", [entry(**folder) | {"dataset": "pets"}, entry("-t rank", **folder)])
    assert [run["report"]["dataset"] for run in every_run(tmp_path)] == ["pets", "cifar10"]


# ---- correlation ---------------------------------------------------------------------------------------------------


def test_correlations_are_those_of_the_filters_in_the_checkpoint(run, tmp_path, capsys):
    dense = run("base", "-t dense --epochs 1 --width 0.25", "dense")
    ours = run("base", "-t rank --epochs 1 --width 0.25", "ours")
    output = tmp_path / "correlation.json"
    runs = [f"dense={dense}", f"Lr={ours}"]
    assert correlation.main(["--runs", *runs, "--output", str(output)]) == 0
    assert "Lr, layer 3, 32 filters" in capsys.readouterr().out
    found = {found["name"]: found for found in json.loads(output.read_text())["runs"]}
    assert found["Lr"]["settings"]["type"] == "rank" and found["Lr"]["epoch"] == 1 and "folder" in found["Lr"]
    assert str(tmp_path) not in output.read_text()
    for name, folder, conv in (("dense", dense, torch.nn.Conv2d), ("Lr", ours, LinearConv)):
        model = Base(conv, num_classes=3, width=0.25)
        model.load_state_dict(load_newest(folder)[0]["model"])
        for stage, layer in enumerate(found[name]["layers"]):
            convolution = model.feat[stage][0]
            filters = convolution.weight.detach().flatten(1).double().numpy()
            expected = np.corrcoef(filters)
            np.testing.assert_allclose(correlation.unpack(layer["hundredths"]), expected, atol=0.005 + 1e-6)
            pairs = ~np.eye(len(expected), dtype=bool)
            means = layer["mean_absolute"]
            assert means["all"] == pytest.approx(np.abs(expected)[pairs].mean(), rel=1e-6)
            assert layer["filters"] == len(filters) and layer["elements"] == filters.shape[1]
            if name == "dense":
                assert layer["primary"] is None and set(means) == {"all"}
                continue
            half = layer["primary"]
            assert half == convolution.primary_channels
            for block, part in (("primary", slice(0, half)), ("secondary", slice(half, None))):
                assert means[block] == pytest.approx(np.abs(expected[part, part])[pairs[part, part]].mean(), rel=1e-6)


@pytest.mark.parametrize(
    "words, named",
    (
        ("--runs Lr", "NAME=FOLDER"),
        ("--runs Lr=nowhere", "nowhere"),
        ("--runs Lr={other}", "VGG11"),
    ),
)
def test_runs_that_cannot_be_read_are_refused_in_one_line(words, named, run, tmp_path, capsys):
    if "{other}" in words:
        words = words.format(other=run("vgg", "--epochs 1 --width 0.0625", "other"))
    capsys.readouterr()
    try:
        code = correlation.main([*words.split(), "--output", str(tmp_path / "none.json")])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and named in lines[0]
