"""What the pages say of speed as results/ have it, and what these must hold."""

import statistics

import linearconv_features
import pytest

from benchmarks import layers
from benchmarks.contenders import CONDITIONS, FIXED, NETWORKS, WITH_EVAL
from docs.tables import load, slower
from tests.helpers.pages import TEXT


def test_all_speed_tables_are_shown():
    assert TEXT["speed.md"].count("<!-- benchmarks/speed.py --readme, ") == 4


def test_speeds_in_readme_come_from_the_processor_that_it_names():
    origins = [row["origin"] for row in load("speed_cpu_float32")["rows"]]
    assert {(each["cpu_instructions"], each["threads"], each["torch"][:4]) for each in origins} == {
        ("AVX512", 2, "2.14")
    }
    assert "In float32, on cores with AVX512 (torch 2.14)" in TEXT["speed.md"]


@pytest.mark.parametrize("precision", ("float32", "bfloat16"))
def test_eval_before_every_pass_and_ever_new_sizes_cost_less_than_a_tenth(precision):
    rows = load(f"speed_cpu_{precision}")["rows"]
    ratios = {(row["network"], row["task"]): row["ratio"] for row in rows if row["contender"] == "full rank, auto"}
    for network in NETWORKS:
        fixed, *others = (ratios[network, task] for task in CONDITIONS)
        assert min(others) > 0.9 * fixed


def test_all_slower_cells_are_explained():
    mobile, inference = "**Training MobileNetV2, 50 images.**", "**Inference of MobileNetV2 in float32, 8 images.**"
    explained = {
        ("float32", "MobileNetV2", "train 50"): mobile,
        ("bfloat16", "MobileNetV2", "train 50"): mobile,
        ("bfloat16", "Base", "train 50"): "**Training Base in bfloat16, 50 images.**",
        ("float32", "MobileNetV2", FIXED): inference,
        ("float32", "MobileNetV2", WITH_EVAL): inference,
        ("float32", "ResNeXt29", "train 256"): "**Training ResNeXt-29, 256 images.**",
    }
    rows = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in slower()[2:]]
    assert set(rows) == set(explained)
    for paragraph in explained.values():
        assert paragraph in TEXT["speed.md"]
    cells = {(row["network"], row["task"], row["contender"]): row for row in load("speed_cpu_float32")["rows"]}
    least = cells["MobileNetV2", "train 256", "full rank, auto"]["ratio"]
    assert f"a fifth of that ({least:.2f} of dense in float32)" in TEXT["speed.md"]
    step = cells["ResNeXt29", "train 256", "dense"]
    assert round(step["milliseconds"] / 1e3) == 6 and step["rounds"] == 3


@pytest.mark.parametrize(
    "measured, least, mean", [("float32", 0.94, 0.99), ("bfloat16", 0.92, 0.99), ("bfloat16_amx", 0.89, 0.98)]
)
def test_auto_follows_the_rule_that_was_measured(measured, least, mean, monkeypatch):
    precision, *amx = measured.split("_")
    monkeypatch.setattr(linearconv_features, "HAS_AMX", bool(amx))
    verdicts = layers.judge(load(f"layers_cpu_{measured}")["rows"], precision, "cpu")
    assert min(verdict["of_the_best_choice"] for verdict in verdicts) > least
    assert statistics.mean(verdict["of_the_best_choice"] for verdict in verdicts) > mean


def test_images_per_second_are_those_of_the_results():
    for row in load("pipeline_cpu")["rows"]:
        if row["pipeline"] != "indexing":
            assert f"{row['images_per_second']:,.0f}" in TEXT["speed.md"]


def test_what_is_said_of_a_gpu_is_what_was_measured_there():
    alone = [
        row["milliseconds"]
        for kind in ("", "_graphs")
        for row in load(f"speed_cuda_float32{kind}")["rows"]
        if (row["network"], row["task"], row["contender"]) == ("VGG11", "infer 1", "dense")
    ]
    text = TEXT["speed.md"]
    assert "VGG11 takes {:.2f} ms for an image, as a graph {:.2f}".format(*alone) in text
    ranges = []
    for kind in ("_graphs", ""):
        ratios = [
            row["ratio"]
            for row in load(f"speed_cuda_float32{kind}")["rows"]
            if row["contender"] == "full rank, auto" and row["task"].startswith("infer")
        ]
        ranges += [min(ratios), max(ratios)]
    said = "{:.2f} to {:.2f} times as fast in float32 when it is replayed as a CUDA graph, and {:.2f} to {:.2f} without"
    assert said.format(*ranges) in TEXT["results/README.md"]
    for precision in ("float32", "bfloat16"):
        rows = load(f"layers_cuda_{precision}")["rows"]
        training = {tuple(row["layer"]): row["microseconds"] for row in rows if row["task"].startswith("train")}
        won = [key for key, us in training.items() if us["full rank, features"] < us["full rank, filters"]]
        assert f"for {'one' if len(won) == 1 else len(won)} of the {len(training)} shapes of layers in training" in text
    gains = {
        (verdict["network"], verdict["task"]): round(100 * (1 - verdict["of_the_best_choice"]))
        for verdict in layers.judge(rows, "bfloat16", "cuda")
        if verdict["variant"] == "full rank" and verdict["task"].startswith("infer")
    }
    assert gains == {
        ("VGG11", "infer 256"): 3,
        ("VGG11", "infer 1024"): 9,
        ("ResNet18", "infer 256"): 0,
        ("ResNet18", "infer 1024"): 4,
    }
    assert "gain 9 % for 1024 images and 3 % for 256, and over ResNet18 4 % and nothing" in text


def test_the_estimate_for_imagenet_stands_on_what_was_measured():
    trained = [
        row["images_per_second"]
        for row in load("speed_cuda_bfloat16_graphs")["rows"]
        if (row["network"], row["contender"], row["task"]) == ("VGG11", "full rank, auto", "train 1024")
    ]
    read = [row["images_per_second"] for row in load("stream_cpu")["rows"]]
    text = TEXT["zoo.md"]
    assert "at {:,.0f} of them a second".format(*trained) in text
    assert (
        "reads and augments {:.0f} JPEG files of 500x375 a second, torchvision's ImageFolder {:.0f}".format(*read)
        in text
    )


def test_speeds_of_compiled_networks_are_those_of_the_results():
    rows = {(row["task"], row["contender"]): row["ratio"] for row in load("speed_cpu_float32_compiled")["rows"]}
    train, infer = "train 50", "infer 50"
    dense, ours, eager = (
        rows[train, f"{name}"] for name in ("dense, compiled", "full rank, auto, compiled", "full rank, auto")
    )
    assert f"(dense {dense:.2f} of eager dense, LinearConv {ours:.2f} against {eager:.2f} eager)" in TEXT["speed.md"]
    ours, eager = rows[infer, "full rank, auto, compiled"], rows[infer, "full rank, auto"]
    assert f"({ours:.2f} against {eager:.2f})" in TEXT["speed.md"]


def test_scripts_start_in_about_the_time_that_importing_torch_takes():
    ratios = {row["command"].split()[-1]: row["cpu_seconds_ratio"] for row in load("startup_cpu")["rows"]}
    assert ratios["--help"] < 1.3 and ratios["--count-only"] < 2
