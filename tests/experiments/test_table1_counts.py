"""Counts of Table 1 of the paper, made again."""

import json

from experiments.table1.counts import RESULT, count_rows, markdown


def test_table_1_comes_out_as_printed_but_for_five_explained_figures():
    rows = count_rows()
    figures = ("parameters", "flops")
    verdicts = {(row["network"], figure): row[f"{figure}_verdict"] for row in rows for figure in figures}
    assert len(verdicts) == 36
    different = {figure: verdict for figure, verdict in verdicts.items() if verdict != "equal"}
    assert set(different) == {
        ("AllConv-Lr", "flops"),
        ("AllConv-LRr", "flops"),
        ("ResNet-18-Lr", "flops"),
        ("ResNeXt-29-Lr", "parameters"),
        ("MobileNetV2-LRr", "flops"),
    }
    assert not any("unexplained" in verdict or "NOT confirmed" in verdict for verdict in different.values())
    assert json.loads(RESULT.read_text())["rows"] == rows
    notes = [line for line in markdown(rows) if line.startswith("(")]
    assert len(notes) == len(set(different.values())) and all(line[4:].strip() in different.values() for line in notes)
    exact = {row["network"]: (row["parameters"], row["flops_paper"]) for row in rows}
    assert exact["VGG11"] == (9_231_114, 170_568_694)
    assert exact["VGG11-Lr"] == (4_922_282, 2_397_909_142)
