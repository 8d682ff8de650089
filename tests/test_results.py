"""README shows what the files in results/ hold."""

import json
from pathlib import Path

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
