"""The page on extending: its files and lines are written into a copy of the repository, and its commands run there."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from linearconv_variants import Variant
from models.base_xcnn import Base
from training.counting import count_parameters
from training.report import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", TEXT, re.DOTALL)
LINES = re.findall(r'<!-- line: (\S+), after "(.*?)" -->\n```python\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
FOLDERS = ("baselines", "experiments", "images", "linearconv_convert", "models", "training", "benchmarks")
RUN = """
import runpy, shlex, sys

for command in sys.argv[1:]:
    python, *words = shlex.split(command)
    run = runpy.run_module if words[0] == "-m" else runpy.run_path
    sys.argv = words[words[0] == "-m" :]
    try:
        run(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, command
"""


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


def run(commands, folder):
    """Run commands in one process, at a quarter of the width: an option of the script, for sweeps behind `--`."""
    quick = []
    for command in commands:
        separator = " --" if "experiments.sweep" in command else ""
        quick.append(f"{command}{separator} --width 0.25" if "--epochs" in command else command)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", RUN, *quick]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_extends_everything_that_it_names():
    names = ["linearconv_blockdiagonal.py", "models/tiny_xcnn.py", "images/stripes.py", "baselines/separable.py"]
    assert [name for name, _ in FILES] == names
    assert len(LINES) == 6 and len(COMMANDS) == 7


def test_the_commands_of_the_page_run(extended):
    output = run([command for command in COMMANDS if "experiments.sweep" not in command], extended)
    (report,) = extended.glob("ckpt/base_xcnn/*stripes*/report.json")
    assert json.loads(report.read_text())["test_accuracy"] > 50  # of four classes
    counts = [int(count.replace(",", "")) for count in re.findall(r"parameters +([\d,]+) = ", output)]
    full_rank = count_parameters(Variant("rank").build(Base))
    assert full_rank - counts[0] == 3 * sum(n * n for n in (16, 32, 64, 128)) // 4  # four blocks: a quarter of A


@pytest.mark.slow
def test_the_sweep_of_the_page_runs(extended):
    run([command for command in COMMANDS if "experiments.sweep" in command], extended)
