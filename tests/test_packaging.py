"""An installed copy has every module, and the layers import torch alone."""

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_module_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]
    assert sorted(listed) == sorted(path.stem for path in ROOT.glob("*.py"))


def test_the_layers_import_torch_alone():
    seen, waiting = set(), {"linearconv", "linearconv_lowrank", "linearconv_rankratio", "linearconv_sparse", "corr_reg"}
    others = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in (module.partition(".")[0] for module in modules):
                ours = (ROOT / f"{module}.py").exists()
                (waiting if ours else others).add(module)
        waiting -= seen
    assert others - set(sys.stdlib_module_names) == {"torch"}
