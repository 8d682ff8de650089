"""README shows what the files in results/ hold."""

import json
import statistics
from pathlib import Path

import costs
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


def test_the_speed_table_in_the_readme_is_that_of_the_results():
    rows = json.loads((ROOT / "results" / "speed_cpu_float32.json").read_text())["rows"]
    assert speed.into_readme(README, speed.summary(rows)) == README


def test_auto_follows_the_rule_that_was_measured():
    measured = json.loads((ROOT / "results" / "layers_cpu_float32.json").read_text())
    assert measured["rule"] == costs.MEASURED._asdict()
    verdicts = layers.judge(measured["rows"])
    assert min(verdict["of_the_best_choice"] for verdict in verdicts) > 0.95
    assert statistics.mean(verdict["of_the_best_choice"] for verdict in verdicts) > 0.99


def test_images_per_second_in_the_readme_are_those_of_the_results():
    rows = json.loads((ROOT / "results" / "pipeline_cpu.json").read_text())["rows"]
    for row in rows:
        if row["pipeline"] != "indexing":
            assert f"{row['images_per_second']:,.0f}" in README
