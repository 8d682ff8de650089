"""The page on extending: its files and lines are written into a copy of the repository, and its commands run there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from training.report import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", TEXT, re.DOTALL)
LINES = re.findall(r'<!-- line: (\S+), after "(.*?)" -->\n```python\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
FOLDERS = ("baselines", "experiments", "images", "linearconv_convert", "models", "training", "benchmarks")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with every file and line of the page."""
    copy = tmp_path_factory.mktemp("extended")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    for name, code in FILES:
        (copy / name).write_text(code)
    for name, before, line in LINES:
        text, before = (copy / name).read_text(), before.replace('\\"', '"') + "\n"
        assert text.count(before) == 1, f"{name}: {before}"
        (copy / name).write_text(text.replace(before, before + line))
    return copy


def run(command, folder):
    python, *words = shlex.split(command)
    assert python == "python"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_extends_everything_that_it_names():
    assert [name for name, _ in FILES] == [
        "linearconv_blockdiagonal.py",
        "models/tiny_xcnn.py",
        "images/stripes.py",
        "baselines/separable.py",
    ]
    assert len(LINES) == 6 and len(COMMANDS) == 7


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_runs(command, extended):
    quick = " --width 0.25" if "--epochs" in command else ""  # an option of the script, for sweeps behind `--`
    quick = f" --{quick}" if "experiments.sweep" in command else quick
    run(command + quick, extended)
    if "--dataset stripes" in command:
        (report,) = extended.glob("ckpt/base_xcnn/*stripes*/report.json")
        assert json.loads(report.read_text())["test_accuracy"] > 50  # of four classes


COUNT = """
from linearconv_variants import Variant
from models.base_xcnn import Base

for name in ("rank", "blockdiagonal"):
    print(sum(parameter.numel() for parameter in Variant(name).build(Base).parameters()))
"""


def test_four_blocks_have_a_quarter_of_the_coefficients(extended):
    full, blocks = map(int, run(f"python -c {shlex.quote(COUNT)}", extended).split())
    assert full - blocks == 3 * sum(n * n for n in (16, 32, 64, 128)) // 4
