"""README and the pages of docs/: code runs, commands and links are valid, and numbers come from results/."""

import importlib
import importlib.util
import re
import shlex
import statistics

import pytest

from docs.tables import PAGES, ROOT, SCRIPTS, TABLE, TABLES, VALUE, fill, measured
from docs.values import fast_rows, load, runs_of, values
from experiments.compress.table import losses
from experiments.sweep import __main__ as sweep
from experiments.sweep.table import summarise
from tests.helpers.runs import EVERY_SCRIPT
from training.options import make_parser, parse_arguments

README, *DOCS = PAGES
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTINGS = {"Conv": "-t dense", "-Lr": "-t rank -r 1", "-LRr": "-t lowrank -r 10"}
for_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page, language):
    return [block for name, block in FENCED.findall(page.read_text()) if name == language]


def commands(page):
    """Every command on a page, in a block or in the text, as its words from `python` or `torchrun` on."""
    inline = re.findall(r"`(python [^`]+)`", FENCED.sub("", page.read_text()).replace("\n", " "))
    lines = re.split(r"\n|&&", "\n".join(blocks(page, "sh")).replace("\\\n", " "))
    for line in [*lines, *inline]:
        words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
        starts = [index for index, word in enumerate(words) if word in ("python", "torchrun")]
        if starts:
            yield words[starts[0] :]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_readme_is_short_and_links_every_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 110
    assert all(f"]({page.relative_to(ROOT)})" in text for page in DOCS)


def test_every_table_is_shown_once_and_every_value_at_least_once():
    text = "\n".join(page.read_text() for page in PAGES)
    assert sorted(name for _, name, _ in TABLE.findall(text)) == sorted(TABLES)
    assert {name for _, name, _ in VALUE.findall(text)} == set(values())
    assert not re.search("^ *<!-- value", text, re.MULTILINE)  # Markdown would end the paragraph there


@for_each_page
def test_tables_and_values_are_those_of_the_parser_and_of_the_results(page):
    text = page.read_text()
    assert fill(text) == text


@pytest.mark.parametrize("page", [README, pytest.param(ROOT / "docs" / "conversion.md", marks=pytest.mark.slow)])
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    assert blocks(page, "python")
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


@for_each_page
def test_links_and_images_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.is_file() and there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


@for_each_page
def test_commands_name_existing_files_and_options(page):
    """Their parsers end the process at an unknown option; test_extending.py runs the commands of its page."""
    for words in commands(page) if page.name != "extending.md" else ():
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words
        scripts = [word.partition(":")[0] for word in words if ".py" in word]
        assert scripts or words[1] == "-m", words
        assert all((ROOT / script).is_file() for script in scripts), words
        trained = [script for script in scripts if re.fullmatch(r"models/\w+_xcnn.py", script) and script in words]
        if words[:3] == ["python", "-m", "experiments.sweep"]:
            sweep.parse(words[3:])
        elif trained and words[1] != "-m":
            networks, *recipes = EVERY_SCRIPT[trained[0].removeprefix("models/").removesuffix("_xcnn.py")]
            parse_arguments(make_parser(networks, *recipes), words[words.index(trained[0]) + 1 :])


@pytest.mark.parametrize("name", SCRIPTS)
def test_accuracies_in_docstrings_of_scripts_are_the_measured_ones(name):
    networks, *_ = EVERY_SCRIPT[name]
    lines = importlib.import_module(f"models.{name}_xcnn").__doc__.splitlines()
    for method, runs in measured(next(iter(networks))).items():
        if method in SETTINGS:
            shown = SETTINGS[method].replace("-t ", "").replace("-r ", "")
            accuracy = statistics.fmean(run["report"]["test_accuracy"] for run in runs)
            assert [line for line in lines if line.startswith(f"    {shown} ")][0].endswith(f" {accuracy:.2f} %")


def test_with_the_short_recipe_full_rank_is_better_than_a_thinner_network_and_rank_10_is_not():
    mean = {row["row"]: row["accuracy"][0] for row in fast_rows()}
    assert mean["Base"] > mean["Base-L"] > mean["Base-Lr"] > mean["Base-thinner-parameters"] > mean["Base-LRr"]


def test_on_other_networks_full_rank_is_not_better_than_a_thinner_network():
    rows = summarise(runs_of("vgg11_fast resnet18_fast"))
    mean = {(row["network"], row["setting"]): row["accuracy"][0] for row in rows}
    for setting in ("-t rank -r 1", "-t rank -r 1 --reg-weight 0"):
        assert mean["VGG11", setting] < mean["VGG11", "-t dense --width 0.73"] + 0.1 < mean["VGG11", "-t ghost"]
        assert mean["ResNet18", setting] < mean["ResNet18", "-t dense --width 0.735"]


def test_tuning_recovers_the_loss_of_base_down_to_57_percent_and_most_of_it_below():
    found, _ = losses(load("compression_base")["runs"])
    mean = {way: {size: statistics.fmean(each) for size, each in by_size.items()} for way, by_size in found.items()}
    at_once, training = mean["LinearConv, at once"], "LinearConv, 6 epochs, lr 0.001"
    for size, lost in mean[f"{training}, teacher"].items():
        assert lost < (0.05 if size >= 0.57 else at_once[size] / 4)
        assert lost < mean[training][size]


def test_the_page_names_the_ways_that_lose_least_on_the_first_seed_of_base():
    found, _ = losses([run for run in load("compression_base")["runs"] if run["report"]["seed"] == 0])
    training = ", 2 epochs, lr 0.001, teacher"
    tuned = {way.partition(",")[0]: by_size for way, by_size in found.items() if way.endswith(training)}
    winners = {size: min(tuned, key=lambda way: tuned[way][size]) for size in tuned["LinearConv"]}
    spatial, tucker = dict.fromkeys((0.57, 0.5, 0.25), "spatial SVD"), dict.fromkeys((0.4, 0.15, 0.1), "Tucker")
    assert winners == {0.75: "SVD pair", **spatial, **tucker}
    for size in (0.75, 0.57):
        lost = [by_size[size][0] for way, by_size in tuned.items() if way != "channel pruning"]
        assert len(lost) == 4 and max(lost) - min(lost) < 0.2
    assert tuned["LinearConv"][0.1][0] > 2 * tuned["Tucker"][0.1][0]
    trained = {way.partition(",")[0]: by_size for way, by_size in found.items() if way.endswith("36 epochs")}
    trained["LinearConv"] = found["LinearConv, 6 epochs, lr 0.001, teacher"]
    order = ["Ghost modules from scratch", "LinearConv", "LinearConv from scratch", "thinner dense from scratch"]
    for size, ways in ((0.57, order), (0.25, order), (0.1, [order[3], *order[:3]])):
        lost = [trained[way][size] for way in ways]
        assert lost == sorted(lost)
