"""README shows what the files in results/ hold."""

import json
from pathlib import Path

import pytest

from experiments.accuracy import markdown

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ("base_cifar10",))
def test_accuracies_in_the_readme_are_those_of_the_results(name):
    runs = json.loads((ROOT / "results" / f"{name}.json").read_text())["runs"]
    assert all(len(run["log"]) == run["report"]["epochs"] >= 15 for run in runs)
    assert "\n".join(markdown(runs)) in (ROOT / "README.md").read_text()
