"""Table 2 of the paper: counted, and filled with the accuracies of sweeps."""

import json

import pytest

from experiments.results import every_run
from experiments.table1.counts import as_printed
from experiments.table1.counts import markdown as counts_markdown
from experiments.table2 import __main__ as table2
from experiments.table2 import accuracy
from experiments.table2.counts import count_rows, table


@pytest.fixture(scope="module")
def counted():
    return count_rows()


def test_table_2_comes_out_as_printed_but_for_two_explained_figures(counted):
    verdicts = {}
    for row in counted:
        for figure in ("parameters", "flops"):
            verdicts[row["network"], figure] = row[f"{figure}_verdict"]
    printed = {place: verdict for place, verdict in verdicts.items() if verdict != "not in the paper's Table 2"}
    different = {place: verdict for place, verdict in printed.items() if verdict != "equal"}
    assert json.loads(table2.RESULT.read_text())["rows"] == counted
    assert len(printed) == 12 and set(different) == {("SqueezeNet-LRr", "parameters"), ("VGG11-Basis", "flops")}
    assert "counted so: 0.101" in different["VGG11-Basis", "flops"]
    assert "4 of 512 choices" in different["SqueezeNet-LRr", "parameters"]
    exact = {row["network"]: (row["parameters"], row["flops_paper"]) for row in counted}
    assert exact["SqueezeNet"] == (729_034, 68_637_696) and exact["SqueezeNet-LRr"] == (465_354, 79_391_616)
    assert exact["VGG11-OctConv"] == (9_233_802, 77_122_294) and exact["VGG11-Basis"] == (1_994_506, 105_761_782)
    assert exact["VGG11, thinner"][0] == pytest.approx(exact["VGG11-LRr"][0], rel=0.01)
    assert sum("(1)" in line or "(2)" in line for line in counts_markdown(counted)) == 4
    assert as_printed({"parameters": 1_994_506, "flops_paper": 105_761_782}) == {"parameters": "1.99", "flops": "0.106"}


# ---- accuracy -------------------------------------------------------------------------------------------------------


def entry(accuracy, network="VGG11", type="dense", rank=None, epochs=4, seed=0, **more):
    report = {"architecture": network, "type": type, "rank": rank, "sparsity": None, "alpha": 0.5, "width": 1.0}
    report |= {"dataset": "cifar10", "epochs": epochs, "seed": seed, "reg_weight": 0.01, "test_accuracy": accuracy}
    counts = ("parameters", "nonzero_parameters", "flops_paper", "macs_inference")
    report |= dict.fromkeys(counts, 1000) | {"best_test_accuracy": accuracy, "best_epoch": 1}
    setting = f"-t {type}" + (f" -r {rank}" if rank else "")
    return {"run": f"{network}-{type}-seed{seed}", "setting": setting, "report": report | more, "log": []}


@pytest.fixture
def lines_of(tmp_path):
    """Write entries to result files; returns the lines of the table."""

    def lines_of(*files):
        for number, entries in enumerate(files):
            (tmp_path / f"sweep{number}.json").write_text(json.dumps({"note": "", "runs": entries}))
        return accuracy.markdown(list(every_run(tmp_path)))

    return lines_of


def cells(lines):
    """{row: cells of CIFAR-10 and of against plain}."""
    split = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "---" not in line]
    return {name: tuple(cell.strip() for cell in rest[:2]) for name, *rest in split}


def test_accuracies_are_read_from_all_sweeps(lines_of):
    width = table()[-1].width
    first = [entry(90.0), entry(91.0, seed=1), entry(89.0, type="lowrank", rank=10), entry(99.0, dataset="svhn")]
    first += [entry(98.0, type="rank", rank=1, alpha=0.25), entry(95.0, width=0.5)]  # no rows of the table
    second = [entry(88.0, type="octave"), entry(87.5, type="svd"), entry(87.0, width=width)]
    lines = lines_of(first, second)
    shown = cells(lines)
    assert shown["VGG11"] == ("90.50 ± 0.71", "")
    assert shown["VGG11-LRr"] == ("89.00", "-1.50")
    assert shown["VGG11-OctConv"] == ("88.00", "-2.50")
    assert shown["VGG11-SVD"] == ("87.50", "-3.00")
    assert shown["VGG11, thinner"] == ("87.00", "-3.50")
    assert shown["VGG11-Basis"] == shown["SqueezeNet"] == shown["VGG11-Lr"] == ("not measured", "")
    assert "| VGG11-Basis | not measured |  | -0.1* | +0.2* | -0.2* |" in lines


def test_rows_of_a_network_are_of_one_recipe_and_length_those_with_most_rows(lines_of):
    long = [entry(93.0, epochs=250)]
    fast = [entry(90.0, recipe="fast"), entry(89.5, type="rank", rank=1, recipe="fast")]
    squeezed = [entry(80.0, "SqueezeNet", epochs=9), entry(79.0, "SqueezeNet", "lowrank", 10, epochs=9)]
    lines = lines_of(long, fast, squeezed)
    shown = cells(lines)
    assert shown["VGG11"] == ("90.00", "") and shown["VGG11-Lr"] == ("89.50", "-0.50")
    assert shown["SqueezeNet-LRr"] == ("79.00", "-1.00")
    assert "VGG11, CIFAR-10, fast recipe, 4 epochs" in " ".join(lines)


# ---- speed and the command ------------------------------------------------------------------------------------------


def test_every_row_is_timed_against_the_plain_network(monkeypatch):
    asked = []

    def compare(steps, seconds, device):
        asked.append(list(steps))
        numbers = {"rounds": 3, "ratio_quartiles": [1, 3]}
        return {key: {"milliseconds": 50.0, "ratio": 1 if key == "dense" else 2, **numbers} for key in steps}

    monkeypatch.setattr(table2, "compare", compare)
    monkeypatch.setattr(table2, "_step", lambda *arguments: None)
    measured = table2.measure_speed(1, "cpu")
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
    assert table2.main(["--output", str(output)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
