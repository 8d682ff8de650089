"""A folder a floor: imports run one way, read from the code itself."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"linearconv_lowrank", "linearconv_rankratio", "linearconv_sparse"}
FLOORS = (  # from the ground up; what stands on one floor may import from it and from those below
    {"linearconv", "linearconv_gram"},
    VARIANTS,
    {"corr_reg", "linearconv_variants"},
    {"baselines"},
    {"images"},
    {"dataloaders"},
    {"linearconv_convert"},
    {"training"},
    {"models"},
    {"benchmarks", "experiments"},
    {"docs"},
)
OURS = set().union(*FLOORS)
NEVER = {  # room: what it does without, though it stands on a lower floor
    "baselines": {"corr_reg"},
    "linearconv_convert": {"images", "dataloaders", "corr_reg", "baselines"},
    "images": {"baselines", "linearconv", "linearconv_gram", "linearconv_variants", "corr_reg", *VARIANTS},
}


def files():
    return [
        path for room in sorted(OURS) for path in (ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")) if path.exists()
    ]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports(path):
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path):
    return {name.partition(".")[0] for name in imports(path)}


def test_eight_files_are_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == {room for room in OURS if (ROOT / f"{room}.py").exists()}
    assert len(list(ROOT.glob("*.py"))) == 8


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_points_up(path):
    floor = next(number for number, floor in enumerate(FLOORS) if room_of(path) in floor)
    below = set().union(*FLOORS[: floor + 1])
    assert rooms(path) & OURS <= below - NEVER.get(room_of(path), set())


def test_no_file_imports_itself_by_way_of_others():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files()}
    arrows = {name: {other for other in imports(path) if other in modules} for name, path in modules.items()}
    while arrows:
        free = [name for name, others in arrows.items() if not others & arrows.keys() - {name}]
        assert free, f"a circle of {sorted(arrows)}"
        for name in free:
            del arrows[name]


def test_the_layers_import_torch_alone():
    for floor in FLOORS[:2]:
        for name in floor:
            assert rooms(ROOT / f"{name}.py") - OURS - set(sys.stdlib_module_names) <= {"torch"}


INSTALLED = [path for path in files() if room_of(path).startswith(("linearconv", "corr_reg"))]


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_installed_uses_public_names_of_torch_alone(path):
    """No name below torch begins with an underscore; the exception has no public counterpart in torch 2.7."""
    tree = ast.parse(path.read_text())
    used = set(imports(path)) | {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = [name.split(".") for name in used if name.split(".")[0] in ("torch", "nn", "F")]
    private = {".".join(name[:3]) for name in names if any(part.startswith("_") for part in name)}
    assert private <= ({"torch.utils._pytree"} if path.parent.name == "linearconv_convert" else set())


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_scripts_in_models_find_the_others_by_themselves(path):
    assert ("sys.path.insert(0, str(Path(__file__)" in path.read_text()) == path.name.endswith("_xcnn.py")
    assert "sys.path.insert(0, str(ROOT))" not in path.read_text()
