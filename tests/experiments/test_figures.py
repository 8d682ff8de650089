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
from tests.helpers.commands import refusal
from tests.helpers.entries import entry, write
from training.checkpoints import load_newest

has_matplotlib = importlib.util.find_spec("matplotlib")
needs_matplotlib = pytest.mark.skipif(not has_matplotlib, reason="figures need matplotlib: pip install matplotlib")
THE_PAPERS = [entry(), entry("-t rank -r 1", reg_weight=0), entry("-t rank -r 1"), entry("-t lowrank -r 10")]


@pytest.fixture
def results(tmp_path):
    """A folder with made-up results for every figure."""
    write(tmp_path, "base_paper_cifar10", THE_PAPERS)
    write(tmp_path, "table1_base_fast", [entry(width=0.5, nonzero_parameters=300), *THE_PAPERS, entry(seed=1)])
    write(tmp_path, "ablation_alpha", [entry(), *(entry("-t rank", alpha=value) for value in (0.25, 0.5))])
    write(tmp_path, "ablation_rank", [entry("-t rank", rank=0.5), entry("-t rank"), entry("-t lowrank", rank=4)])
    write(tmp_path, "ablation_sparsity", [entry("-t sparse", sparsity=value) for value in (0.25, 0.5)])
    layer = {"layer": 1, "name": "feat.0.0", "elements": 27, "filters": 4, "hundredths": ["50 -25 0", "0 0", "100"]}
    dense = layer | {"primary": None, "mean_absolute": {"all": 0.3}}
    ours = layer | {"primary": 2, "mean_absolute": {"all": 0.3, "primary": 0.5, "secondary": 1.0}}
    runs = [{"name": "dense", "layers": [dense] * 2}, {"name": "Lr", "layers": [ours] * 2}]
    (tmp_path / "correlation_base.json").write_text(json.dumps({"runs": runs}))
    unit = {"way": "svd", "budget": 0.5, "teacher": True}
    write(tmp_path, "compression_base", [entry(), *(entry("--way svd", epochs=epochs, **unit) for epochs in (0, 2))])
    return tmp_path


@needs_matplotlib
def test_every_figure_is_drawn_or_left_out_in_a_line(results, capsys):
    assert figures.main(["--results-folder", str(results)]) == 0
    assert capsys.readouterr().out.count("written") == len(figures.FIGURES)
    drawn = {path.name for path in (results / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in figures.FIGURES for kind in ("svg", "png")}
    for path in (*results.glob("ablation_*.json"), results / "correlation_base.json"):
        path.unlink()
    write(results, "base_paper_cifar10", [entry("-t rank")])
    assert figures.main(["ablations", "correlation", "training_curves", "--results-folder", str(results)]) == 0
    assert figures.main(["accuracy_parameters", "--results-folder", str(results), "--results", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, named in zip(lines, ("ablation_alpha.json", "experiments.correlation", "dense", "none"), strict=True):
        assert line.startswith("left out: ") and named in line


@pytest.mark.parametrize(
    "words, named",
    (
        ("--results-folder nowhere", "nowhere"),
        ("compression --results-folder FOLDER", "compression_base.json is not JSON"),
        ("correlation --results-folder FOLDER", "correlation_base.json has no valid 'runs'"),
    ),
)
def test_bad_input_ends_in_one_line(words, named, results, monkeypatch, capsys):
    (results / "compression_base.json").write_text("{")
    (results / "correlation_base.json").write_text("{}")
    line = refusal(figures.main, words.replace("FOLDER", str(results)).split(), capsys)
    assert named in line or "pip install matplotlib" in line
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install matplotlib" in refusal(figures.main, ["ablations", "--results-folder", str(results)], capsys)


@needs_matplotlib
def test_training_curves_show_every_network_that_has_them(results):
    from experiments.figures import training_curves

    write(results, "vgg11_paper_cifar10", [entry(architecture="VGG11"), entry("-t rank -r 1", architecture="VGG11")])
    titles = [axes.get_title("left") for axes in training_curves.draw(results).axes[::2]]
    assert [title[:5] for title in titles] == ["Base,", "VGG11"]
    assert "20 of 250 epochs" in titles[1]


@needs_matplotlib
def test_curves_of_conversion_are_means_over_seeds(results):
    from experiments.figures import accuracy_parameters

    unit = {"way": "linearconv", "budget": 0.5, "teacher": False, "epochs": 0}
    runs = [entry("--way linearconv", accuracy, seed=seed, **unit) for seed, accuracy in enumerate((80, 90))]
    write(results, "compression_base", runs)
    lines = {line.get_label(): line for line in accuracy_parameters.draw(results).axes[0].lines}
    assert lines["LinearConv, at once"].get_ydata() == [85]


@pytest.mark.parametrize(
    "run, name",
    (
        (entry(width=0.5), "Conv, width 0.5"),
        (entry("-t rank -r 1", reg_weight=0), "-L"),
        (entry("-t rank -r 1 --no-amp --alpha 0.5"), "-Lr, --no-amp"),
        (entry("-t ghost", alpha=0.25), "Ghost module, alpha 0.25"),
        (entry("-t lowrank -r 10", reg_weight=0), "rank 10, no regulariser"),
    ),
)
def test_settings_are_called_as_in_the_paper(run, name):
    assert method(run) == name


def test_runs_compare_that_share_network_data_recipe_and_epochs(tmp_path):
    folder = {"dataset": "imagefolder"}  # its name is the run's, or in older results the file's
    write(tmp_path, "one_cifar100", [entry(**folder), entry(**folder) | {"dataset": "pets"}])
    twice = entry("-t rank", seed=1)
    write(tmp_path, "two", [entry("-t rank"), twice, twice, entry(epochs=9)])
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    groups = comparable(every_run(tmp_path))
    conditions = {("cifar100", "paper", 20), ("pets", "paper", 20), ("cifar10", "paper", 20), ("cifar10", "paper", 9)}
    assert set(groups) == {("Base", *each) for each in conditions}
    methods = groups["Base", "cifar10", "paper", 20]
    assert {name: len(runs) for name, runs in methods.items()} == {"-Lr": 2}
    text = describe(("Base", "cifar10", "paper", 20), map(len, methods.values()))
    assert text == "Base, CIFAR-10, the paper's recipe, 20 of 250 epochs, 2 seeds"


def test_correlations_are_those_of_the_filters_in_the_checkpoint(run, tmp_path, capsys):
    dense = run("base", "-t dense --epochs 1 --width 0.25", "dense")
    ours = run("base", "-t rank --epochs 1 --width 0.25", "ours")
    output = tmp_path / "correlation.json"
    assert correlation.main(["--runs", f"dense={dense}", f"Lr={ours}", "--output", str(output)]) == 0
    assert "Lr, layer 3, 32 filters" in capsys.readouterr().out
    assert str(tmp_path) not in output.read_text()
    found = {found["name"]: found for found in json.loads(output.read_text())["runs"]}
    assert found["Lr"]["settings"]["type"] == "rank" and found["Lr"]["epoch"] == 1
    for name, folder, conv in (("dense", dense, torch.nn.Conv2d), ("Lr", ours, LinearConv)):
        model = Base(conv, num_classes=3, width=0.25)
        model.load_state_dict(load_newest(folder)[0]["model"])
        for stage, layer in enumerate(found[name]["layers"]):
            filters = model.feat[stage][0].weight.detach().flatten(1).double().numpy()
            expected = np.corrcoef(filters)
            np.testing.assert_allclose(correlation.unpack(layer["hundredths"]), expected, atol=0.005 + 1e-6)
            assert (layer["filters"], layer["elements"]) == filters.shape
            half, pairs = layer["primary"], ~np.eye(len(expected), dtype=bool)
            blocks = {"all": slice(None)}
            if name == "Lr":
                assert half == model.feat[stage][0].primary_channels
                blocks |= {"primary": slice(0, half), "secondary": slice(half, None)}
            means = {block: np.abs(expected[part, part])[pairs[part, part]].mean() for block, part in blocks.items()}
            assert layer["mean_absolute"] == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("words, named", (("--runs Lr", "NAME=FOLDER"), ("--runs Lr=nowhere", "nowhere")))
def test_runs_that_cannot_be_read_are_refused_in_one_line(words, named, tmp_path, capsys):
    assert named in refusal(correlation.main, [*words.split(), "--output", str(tmp_path / "none.json")], capsys)
