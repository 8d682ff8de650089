"""The wheel contains the layers and conversion alone, and conflicts with no other package."""

import shutil
import subprocess
import sys
from importlib.metadata import distributions

import pytest

from tests.test_layout import ROOT, top_names

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = SETTINGS["tool"]["setuptools"]["py-modules"]
PACKAGES = SETTINGS["tool"]["setuptools"]["packages"]
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

IN_A_FOREIGN_PROJECT = """
import sys
from importlib.metadata import entry_points
from pathlib import Path

foreign, target = sys.argv[1:]
sys.path[:0] = [foreign, target]

import torch

import options
from linearconv import LinearConv
from linearconv_convert import convert

small = convert(torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 32, 3)), "rank")
assert isinstance(small[1], LinearConv) and small(torch.randn(1, 3, 8, 8)).shape == (1, 32, 4, 4)
(command,) = entry_points(group="console_scripts", name="linearconv-convert")
assert callable(command.load())
import corr_reg

assert options.FOREIGN
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print("ours:", *{name.partition(".")[0] for name, file in files.items() if file and Path(target) in Path(file).parents})
"""


def test_modules_that_begin_with_linearconv_and_corr_reg_are_installed():
    assert sorted(MODULES) == sorted(path.stem for path in [*ROOT.glob("linearconv*.py"), ROOT / "corr_reg.py"])
    assert PACKAGES == [path.parent.name for path in ROOT.glob("linearconv*/__init__.py")]


@pytest.mark.parametrize("name", [*MODULES, *PACKAGES])
def test_installed_modules_import_each_other_and_torch_alone(name):
    allowed = {*MODULES, "torch"}
    if name in PACKAGES:
        allowed |= {name, "torchvision", "timm", "matplotlib", "onnxruntime"}  # imported where they are needed
    for path in (ROOT / name).rglob("*.py") if name in PACKAGES else [ROOT / f"{name}.py"]:
        assert top_names(path) - set(sys.stdlib_module_names) <= allowed


def test_the_requirements_of_the_clone_include_those_of_the_package():
    project = SETTINGS["project"]
    for requirements, wanted in (("", project["dependencies"]), ("-dev", project["optional-dependencies"]["export"])):
        assert set(wanted) <= set((ROOT / f"requirements{requirements}.txt").read_text().splitlines())


@pytest.mark.slow
def test_a_wheel_contains_nothing_else_and_converts_a_network_beside_modules_of_our_names(tmp_path):
    for builder in ("pip", "setuptools"):
        if not list(distributions(name=builder)):
            pytest.skip(f"{builder} is missing, which builds the wheel")
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "target"
    source.mkdir()
    for path in [*ROOT.glob("*.py"), *(ROOT / name for name in FILES)]:
        shutil.copy(path, source)
    for path in ROOT.glob("*/__init__.py"):  # with the folders that must not be installed
        shutil.copytree(path.parent, source / path.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", wheels], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", target, *wheels.glob("*.whl")], check=True)
    found = {path.name for path in target.iterdir() if path.suffix != ".dist-info"} - {"bin", "__pycache__"}
    assert found == {f"{name}.py" for name in MODULES} | set(PACKAGES)
    assert all((target / package / "py.typed").exists() for package in PACKAGES)
    (tmp_path / "options.py").write_text("FOREIGN = True")
    command = [sys.executable, "-I", "-c", IN_A_FOREIGN_PROJECT, tmp_path, target]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[-1].split()) == {"ours:", *MODULES, *PACKAGES}
