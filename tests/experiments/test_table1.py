"""Table 1 with accuracies of our own: its runs are found again by their settings, and stand beside the paper's."""

import json
from itertools import product

import pytest

from experiments import paper
from experiments.results import every_run
from experiments.table1 import __main__ as table1
from experiments.table1.__main__ import ROWS, compare, setting
from experiments.table1.counts import count_rows, markdown
from models.base_xcnn import Base
from tests.helpers.commands import refusal
from tests.helpers.entries import entry, write
from training.counting import count_parameters
from training.report import ROOT


def planned(folder, options, extra=""):
    places = ["--name", "t", "--ckpt", str(folder / "ckpt"), "--results", str(folder / "results")]
    words = [*options.split(), *places, *(["--", *extra.split()] if extra else [])]
    return table1.plan(*table1.parse(words))


def run_of(name, row, accuracy, seed=0, dataset="cifar10"):
    """A finished run of a row."""
    return entry(setting(name, row, dataset), accuracy, paper.NETWORKS[name].__name__, seed, dataset=dataset)


def test_every_row_of_a_network_is_a_run_of_its_script_that_the_table_finds(tmp_path):
    runs = planned(tmp_path, "--train --networks Base ResNet-18")
    places = [(run.script.name, run.settings["network"]) for run in runs]
    assert places == [("base_xcnn.py", "Base")] * 8 + [("resnet_xcnn.py", "ResNet18")] * 8
    expected = [setting(name, row, "cifar10") for name in ("Base", "ResNet-18") for row in ROWS]
    assert [run.setting for run in runs] == expected and len({run.name for run in runs}) == 16


def test_thinner_rows_have_the_parameters_and_the_classes_of_full_rank(tmp_path):
    thin, wider = planned(tmp_path, "--train --networks Base --rows thinner-parameters --datasets cifar10 cifar100")
    assert (thin.settings["width"], wider.settings["dataset"]) == (0.75, "cifar100")
    rank = 227_418 + (100 - 10) * (1024 + 1)  # a wider last layer, in both
    counted = count_parameters(Base(width=wider.settings["width"], num_classes=100))
    assert wider.settings["width"] != 0.75 and counted == pytest.approx(rank, rel=0.01)


def test_a_folder_of_images_is_called_by_its_name(tmp_path):
    root = tmp_path / "cifar10"
    (root / "train" / "cat").mkdir(parents=True)
    images = f"--dataset imagefolder --data-root {root} --lr 0.01"
    (run,) = planned(tmp_path, "--train --networks Base --rows dense --recipe fast --epochs 3", images)
    assert (run.name, run.dataset) == ("Base-dense-fast-cifar10-seed0", "cifar10")
    expected = {"dataset": "imagefolder", "recipe": "fast", "epochs": 3, "lr": 0.01}
    assert expected.items() <= {key: run.settings[key] for key in expected}.items()


@pytest.mark.parametrize(
    "options, named",
    (
        ("--rows dense", "give --train or --table"),
        ("--train", "--name"),
        ("--table --name t", "has no run of these in"),
        ("--train --name t --datasets svhn -- --dataset mnist", "--datasets asks for svhn, but --dataset gives mnist"),
    ),
)
def test_bad_input_is_refused_in_one_line(tmp_path, options, named, capsys):
    places = ["--ckpt", str(tmp_path / "ckpt"), "--results", str(tmp_path / "results")]
    assert named in refusal(table1.main, [*places, *options.split()], capsys)


def test_ours_stand_beside_the_papers(tmp_path):
    runs = [run_of("Base", "dense", accuracy, seed) for seed, accuracy in enumerate((90.0, 91.0, 92.0))]
    runs += [run_of("Base", "Lr", 90.6), run_of("Base", "L", 89.0), run_of("VGG11", "LRr", 80.0)]
    write(tmp_path, "t", runs)
    dense, without, full, other = compare(list(every_run(tmp_path)))
    assert [row["row"] for row in (dense, without, full, other)] == ["Base", "Base-L", "Base-Lr", "VGG11-LRr"]
    assert (dense["accuracy"], dense["seeds"], dense["best"][0]) == ((91.0, 1.0), 3, 92.0)
    assert (dense["against_dense"], dense["paper"]) == (None, "87.2 %")
    assert (full["paper"], full["paper_against"]) == (f"{paper.accuracies('Base', 'cifar10')['-Lr']:.1f} %", "-0.1")
    assert full["against_dense"] == pytest.approx(-0.4)
    assert without["against_dense"] == pytest.approx(-2) and without["paper"] is None
    assert (other["against_dense"], other["paper_against"]) == (None, "-0.6")


def test_data_sets_networks_and_rows_are_chosen_for_the_table(tmp_path, capsys):
    runs = [run_of("Base", row, 80, dataset=dataset) for row in ("dense", "Lr") for dataset in ("cifar10", "svhn")]
    write(tmp_path, "t", [*runs, run_of("VGG11", "Lr", 70)])
    base = ["| Base | svhn", "| Base-Lr | svhn"]
    for options, expected in (
        ("", ["| Base | cifar10", "| Base-Lr | cifar10", "| VGG11-Lr | cifar10", *base]),
        ("--datasets svhn --rows Lr", base[1:]),
        ("--networks VGG11", ["| VGG11-Lr | cifar10"]),
    ):
        assert table1.main(["--table", "--name", "t", "--results", str(tmp_path), *options.split()]) == 0
        *lines, _, conditions = capsys.readouterr().out.splitlines()
        assert [" | ".join(line.split(" | ")[:2]) for line in lines[2:]] == expected
        assert conditions.startswith("Ours: paper recipe, after 20 epochs;")


def test_table_1_comes_out_as_printed_but_for_five_explained_figures():
    rows = count_rows()
    assert json.loads((ROOT / "results" / "table1_counts.json").read_text())["rows"] == rows
    different = {}
    for row, figure in product(rows, ("parameters", "flops")):
        if row[f"{figure}_verdict"] != "equal":
            different[row["network"], figure] = row[f"{figure}_verdict"]
    flops = {(name, "flops") for name in ("AllConv-Lr", "AllConv-LRr", "ResNet-18-Lr", "MobileNetV2-LRr")}
    assert len(rows) == 18 and set(different) == flops | {("ResNeXt-29-Lr", "parameters")}
    assert not any("unexplained" in verdict or "NOT confirmed" in verdict for verdict in different.values())
    notes = [line[4:].strip() for line in markdown(rows) if line.startswith("(")]
    assert notes == list(different.values())
