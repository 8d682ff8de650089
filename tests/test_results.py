"""README shows what the files in results/ hold."""

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import layers, speed
from experiments.accuracy import markdown

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def load(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())["runs"]


def test_accuracies_in_the_readme_are_those_of_the_results():
    runs = load("base_cifar10")
    assert all(len(run["log"]) == run["report"]["epochs"] >= 15 for run in runs)
    assert "\n".join(markdown(runs)) in README


def test_pruned_shares_in_the_readme_are_those_of_the_results():
    for run in load("sparse_controllers"):
        report = run["report"]
        pruned = f"{100 * run['log'][-1]['pruned']:.1f} %"
        parameters = f"{report['nonzero_parameters']:,} of {report['parameters']:,}"
        assert f"| `{run['variant']}` | {pruned} | {parameters} | {report['test_accuracy']:.2f} % |" in README


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_speed_tables_in_the_readme_are_those_of_the_results(precision):
    rows = json.loads((ROOT / "results" / f"speed_cpu_{precision}.json").read_text())["rows"]
    assert speed.into_readme(README, speed.summary(rows), precision) == README


@pytest.mark.parametrize("precision, least, mean", [("float32", 0.95, 0.99), ("bfloat16", 0.89, 0.98)])
def test_auto_follows_the_rule_that_was_measured(precision, least, mean):
    measured = json.loads((ROOT / "results" / f"layers_cpu_{precision}.json").read_text())
    verdicts = layers.judge(measured["rows"], precision)
    assert min(verdict["of_the_best_choice"] for verdict in verdicts) > least
    assert statistics.mean(verdict["of_the_best_choice"] for verdict in verdicts) > mean


def test_images_per_second_in_the_readme_are_those_of_the_results():
    rows = json.loads((ROOT / "results" / "pipeline_cpu.json").read_text())["rows"]
    for row in rows:
        if row["pipeline"] != "indexing":
            assert f"{row['images_per_second']:,.0f}" in README
