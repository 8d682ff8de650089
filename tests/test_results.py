"""README shows what the files in results/ hold."""

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import layers, speed
from experiments import compress
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


def test_the_speed_tables_in_the_readme_are_those_of_the_results():
    assert README.count("<!-- benchmarks/speed.py --readme, ") == 3
    assert speed.into_readme(README, ROOT / "results") == README


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


def test_the_compression_table_in_the_readme_is_that_of_the_result():
    record = json.loads((ROOT / "results" / "compress_base.json").read_text())
    assert "\n".join(compress.markdown(record)) in README


def test_fits_of_trained_filters_are_within_one_per_cent_of_the_optimum():
    record = json.loads((ROOT / "results" / "compress_base.json").read_text())
    for layer in record["fit_quality"]:
        assert layer["optimum"] <= layer["fitted"] * (1 + 1e-6) <= 1.01 * layer["optimum"]
        assert layer["fitted"] <= 0.75 * layer["first_filters"] and layer["largest_coefficient"] < 1e4


def test_the_deployment_table_in_the_readme_is_that_of_the_result():
    pytest.importorskip("onnxruntime")
    from benchmarks import deployment

    rows = json.loads((ROOT / "results" / "deployment_cpu.json").read_text())["rows"]
    assert "\n".join(deployment.markdown(rows)) in README
    bytes_of = {(row["network"], row["file"]): row["bytes"] for row in rows}
    for network in {row["network"] for row in rows}:
        assert bytes_of[network, "features"] < 0.62 * bytes_of[network, "dense"]


def test_precisions_agree_within_the_noise_of_seeds():
    runs = load("precision_digits")
    accuracies = {}
    for run in runs:
        setting, seed = run["variant"].rsplit(" --seed ", 1)
        accuracies.setdefault(setting, []).append(run["report"]["test_accuracy"])
        assert run["report"]["seed"] == int(seed)
    reference = accuracies["--no-amp"]
    for setting, values in accuracies.items():
        assert len(values) == 5
        noise = (statistics.variance(values) / 5 + statistics.variance(reference) / 5) ** 0.5
        assert abs(statistics.mean(values) - statistics.mean(reference)) <= 2.5 * noise + 1e-9
        shown = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %"
        assert f"| `{setting}` | {shown} |" in README
