"""Imports run one way, read from the code itself."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"linearconv_lowrank", "linearconv_rankratio", "linearconv_sparse"}
LEVELS = (  # lowest first; a module imports from its own level and from lower ones
    {"linearconv"},
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
OURS = set().union(*LEVELS)
NEVER = {  # further imports that a folder does not need
    "baselines": {"corr_reg"},
    "linearconv_convert": {"images", "dataloaders", "corr_reg", "baselines"},
    "images": {"baselines", "linearconv", "linearconv_variants", "corr_reg", *VARIANTS},
}


def files():
    return [
        path for name in sorted(OURS) for path in (ROOT / f"{name}.py", *(ROOT / name).rglob("*.py")) if path.exists()
    ]


def top_name(path):
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


def top_names(path):
    return {name.partition(".")[0] for name in imports(path)}


def test_seven_files_are_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == {name for name in OURS if (ROOT / f"{name}.py").exists()}
    assert len(list(ROOT.glob("*.py"))) == 7


def test_no_import_points_up():
    for path in files():
        level = next(number for number, level in enumerate(LEVELS) if top_name(path) in level)
        below = set().union(*LEVELS[: level + 1])
        assert top_names(path) & OURS <= below - NEVER.get(top_name(path), set()), path


def test_no_file_imports_itself_by_way_of_others():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files()}
    arrows = {name: {other for other in imports(path) if other in modules} for name, path in modules.items()}
    while arrows:
        free = [name for name, others in arrows.items() if not others & arrows.keys() - {name}]
        assert free, f"a circle of {sorted(arrows)}"
        for name in free:
            del arrows[name]


def test_installed_modules_use_public_names_of_torch_alone():
    """No name below torch begins with an underscore; the exception has no public counterpart in torch 2.7."""
    for path in files():
        if not top_name(path).startswith(("linearconv", "corr_reg")):
            continue
        tree = ast.parse(path.read_text())
        used = set(imports(path)) | {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names = [name.split(".") for name in used if name.split(".")[0] in ("torch", "nn", "F")]
        private = {".".join(name[:3]) for name in names if any(part.startswith("_") for part in name)}
        assert private <= ({"torch.utils._pytree"} if path.parent.name == "linearconv_convert" else set()), path


def test_only_the_scripts_in_models_find_the_others_by_themselves():
    for path in files():
        assert ("sys.path.insert(0, str(Path(__file__)" in path.read_text()) == path.name.endswith("_xcnn.py"), path
