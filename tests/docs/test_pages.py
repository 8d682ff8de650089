"""README and the pages of docs/: what they show runs, and what they point to is there."""

import importlib.util
import re
import shlex

import pytest

from docs.tables import MARKED, PAGES, ROOT, TABLES, fill
from experiments.sweep import __main__ as sweep
from tests.helpers.runs import EVERY_SCRIPT
from training.options import make_parser, parse_arguments

README, *DOCS = PAGES
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [block for name, block in FENCED.findall(page.read_text()) if name == language]


def commands(page):
    """Every command that a page shows, in a block or in a line, as its words from `python` or `torchrun` on."""
    inline = re.findall(r"`(python [^`]+)`", FENCED.sub("", page.read_text()).replace("\n", " "))
    lines = re.split(r"\n|&&", "\n".join(blocks(page, "sh")).replace("\\\n", " "))
    for line in [*lines, *inline]:
        words = shlex.split(line, comments=True)
        starts = [index for index, word in enumerate(words) if word in ("python", "torchrun")]
        if starts:
            yield words[starts[0] :]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


for_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
SHOWN = [(page.name, words) for page in PAGES for words in commands(page)]
for_each_command = pytest.mark.parametrize(
    "words", [words for _, words in SHOWN], ids=[f"{name}: {shlex.join(words)}" for name, words in SHOWN]
)


def test_readme_is_short_and_leads_to_every_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    assert all(f"]({page.relative_to(ROOT)})" in text for page in DOCS)


def test_every_table_is_shown_once():
    shown = [name for page in PAGES for _, name, _ in MARKED.findall(page.read_text())]
    assert sorted(shown) == sorted(TABLES)


@for_each_page
def test_tables_are_those_of_the_parser_and_of_the_results(page):
    if page.name == "conversion.md":
        pytest.importorskip("onnxruntime")
    text = page.read_text()
    assert fill(text) == text


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


@for_each_page
def test_links_and_images_lead_to_what_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.is_file() and there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


@for_each_command
def test_commands_name_what_is_there(words):
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
    scripts = [word.partition(":")[0] for word in words if ".py" in word]
    assert scripts or words[1] == "-m"
    assert all((ROOT / script).is_file() for script in scripts)


@for_each_command
def test_options_that_are_shown_exist(words):
    """Those of training scripts and of sweeps; their parsers end the process where they refuse one."""
    words = [word.replace("$SLURM_ARRAY_TASK_ID", "1") for word in words]
    if words[:3] == ["python", "-m", "experiments.sweep"]:
        sweep.parse(words[3:])
    elif scripts := [word for word in words if re.fullmatch(r"models/\w+_xcnn.py", word)]:
        networks, *recipes = EVERY_SCRIPT[scripts[0].removeprefix("models/").removesuffix("_xcnn.py")]
        parse_arguments(make_parser(networks, *recipes), words[words.index(scripts[0]) + 1 :])
