"""Table 2 of the paper: counted, and filled with the accuracies of sweeps."""

import json
from functools import partial
from itertools import product

import pytest

from benchmarks import speed
from experiments.results import every_run
from experiments.table2 import __main__ as table2
from experiments.table2.counts import count_rows, table
from tests.helpers.commands import refusal
from tests.helpers.entries import entry, write


@pytest.fixture(scope="module")
def counted():
    return count_rows()


def test_table_2_comes_out_as_printed_but_for_two_explained_figures(counted):
    assert json.loads(table2.RESULT.read_text())["rows"] == counted
    printed = {}
    for row, figure in product(counted, ("parameters", "flops")):
        if row[f"{figure}_printed"] != "-":
            printed[row["network"], figure] = row[f"{figure}_verdict"]
    different = {place: verdict for place, verdict in printed.items() if verdict != "equal"}
    assert len(printed) == 12 and set(different) == {("SqueezeNet-LRr", "parameters"), ("VGG11-Basis", "flops")}
    assert "counted so: 0.101" in different["VGG11-Basis", "flops"]
    assert "4 of 512 choices" in different["SqueezeNet-LRr", "parameters"]
    exact = {row["network"]: (row["parameters"], row["flops_paper"]) for row in counted}
    assert exact["SqueezeNet"] == (729_034, 68_637_696) and exact["SqueezeNet-LRr"] == (465_354, 79_391_616)
    assert exact["VGG11, thinner"][0] == pytest.approx(exact["VGG11-LRr"][0], rel=0.01)


def shown(folder, *files):
    """{row: cells} of the table of made-up results, and all lines."""
    for number, entries in enumerate(files):
        write(folder, f"sweep{number}", entries)
    lines = table2.accuracy_table(every_run(folder))
    split = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "---" not in line]
    return {name: tuple(cell.strip() for cell in cells) for name, *cells in split}, lines


def test_accuracies_are_read_from_all_sweeps(tmp_path):
    vgg, width = partial(entry, network="VGG11"), table()[-1].width
    first = [vgg(accuracy=90.0), vgg(accuracy=91.0, seed=1), vgg("-t lowrank -r 10", 89.0)]
    first += [vgg(accuracy=99.0, dataset="svhn"), vgg("-t rank -r 1", alpha=0.25), vgg(width=0.5, seed=2)]  # no rows
    second = [vgg("-t octave", 88.0), vgg("-t svd", 87.5), vgg(accuracy=87.0, width=width)]
    cells, _ = shown(tmp_path, first, second)
    assert cells["VGG11"][:2] == ("90.50 ± 0.71", "") and cells["VGG11-LRr"][:2] == ("89.00", "-1.50")
    assert cells["VGG11-OctConv"][:2] == ("88.00", "-2.50") and cells["VGG11-SVD"][:2] == ("87.50", "-3.00")
    assert cells["VGG11, thinner"][:2] == ("87.00", "-3.50")
    assert cells["SqueezeNet"][:2] == cells["VGG11-Lr"][:2] == ("not measured", "")
    assert cells["VGG11-Basis"] == ("not measured", "", "-0.1*", "+0.2*", "-0.2*")


def test_rows_of_a_network_are_of_one_recipe_and_length_those_with_most_rows(tmp_path):
    vgg, squeeze = partial(entry, network="VGG11"), partial(entry, network="SqueezeNet", epochs=9)
    long = [vgg(accuracy=93.0, epochs=250)]
    fast = [vgg(accuracy=90.0, recipe="fast"), vgg("-t rank -r 1", 89.5, recipe="fast")]
    squeezed = [squeeze(accuracy=80.0), squeeze("-t lowrank -r 10", 79.0)]
    cells, lines = shown(tmp_path, long, fast, squeezed)
    assert cells["VGG11"][:2] == ("90.00", "") and cells["VGG11-Lr"][:2] == ("89.50", "-0.50")
    assert cells["SqueezeNet-LRr"][:2] == ("79.00", "-1.00")
    assert "VGG11, CIFAR-10, short recipe, 20 epochs" in " ".join(lines)


def test_every_row_is_timed_against_the_plain_network(monkeypatch):
    asked = []

    def compare(steps, seconds, device):
        asked.append(list(steps))
        numbers = {"rounds": 3, "ratio_quartiles": [1, 3]}
        return {key: {"milliseconds": 50.0, "ratio": 1 if key == "dense" else 2, **numbers} for key in steps}

    monkeypatch.setattr(speed, "compare", compare)
    monkeypatch.setattr(speed, "make_step", lambda *arguments: None)
    measured = table2.measure_speed("cpu")
    assert asked[0] == ["dense", "SqueezeNet-LRr"] and asked[-1][0] == "dense" and len(asked) == 2 * 3
    assert {row["network"] for row in measured["rows"]} == {row.name for row in table()}
    assert {row["images_per_second"] for row in measured["rows"] if row["task"] == "infer 1"} == {20.0}
    assert "| VGG11-SVD | 50.00 (2.00) | 50.00 (2.00) | 50.00 (2.00) |" in table2.speed_table(measured)


def test_the_command_counts_and_keeps_measured_speeds(tmp_path, capsys, monkeypatch, counted):
    monkeypatch.setattr(table2, "count_rows", lambda: counted)
    times = {"origin": {"device": "cpu", "threads": 2, "torch": "2"}, "precision": "float32"}
    times["rows"] = [{"network": "VGG11", "task": task, "milliseconds": 7.0, "ratio": 1.0} for task in table2.TASKS]
    output = tmp_path / "table2.json"
    assert table2.main(["--output", str(output)]) == 0
    assert "| VGG11-Lr | 4,922,282 |" in capsys.readouterr().out
    output.write_text(json.dumps(json.loads(output.read_text()) | {"speed": times}))
    assert table2.main(["--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["speed"] == times and record["rows"] == counted
    assert "| VGG11 | 7.00 (1.00) | 7.00 (1.00) | 7.00 (1.00) |" in capsys.readouterr().out
    output.write_text("{")
    assert "is not JSON" in refusal(table2.main, ["--output", str(output)], capsys)
