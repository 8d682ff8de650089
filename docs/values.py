"""The numbers in the prose of README and docs/, from the files in results/."""

import statistics
from functools import cache

from benchmarks.measuring import ratios_over_sittings
from experiments.compress.table import losses
from experiments.results import RESULTS, every_run, read_json
from experiments.sweep.table import summarise
from experiments.table1.__main__ import compare


@cache
def values() -> dict[str, str]:
    """Return the numbers in the prose, by name."""
    rows = counts_by_network()
    verdicts = [row[f"{figure}_verdict"] for row in rows.values() for figure in ("parameters", "flops")]
    training = [ratio for (_, _, name), ratio in speeds("speed_cpu_float32").items() if name == "full rank"]
    deployed = [ratio for (_, _, name), ratio in speeds("deployment_cpu_float32").items() if name == "deployed"]
    vgg, vgg_lr = rows["VGG11"], rows["VGG11-Lr"]
    curves = {}  # Base with the paper's recipe: accuracies by epoch
    for run in every_run(pattern="base_paper_cifar10"):
        curves[run["method"]] = [record["test_accuracy"] for record in run["log"]]
    ends = {method: statistics.fmean(curve[-10:]) for method, curve in curves.items()}
    fast = {row["row"]: row["accuracy"][0] for row in fast_rows()}
    thinner = fast["Base-thinner-parameters"]
    vgg_fast = {row["setting"]: row["accuracy"][0] for row in summarise(runs_of("vgg11_fast"))}
    first, *_ = next(run for run in load("correlation_base")["runs"] if run["name"] == "L")["layers"]
    by_way = {study: losses(load(f"compression_{study}")["runs"])[0] for study in ("base", "vgg11")}
    lost = {}  # points of accuracy, by conversion without training
    for study, ways in by_way.items():
        lost |= {(study, size): statistics.fmean(each) for size, each in ways["LinearConv, at once"].items()}
    streamed, theirs = (row["images_per_second"] for row in load("stream_cpu")["rows"])
    found = {
        "equal_figures": verdicts.count("equal"),
        "vgg_paper_flops": f"{vgg_lr['flops_paper'] / vgg['flops_paper']:.0f}",
        "vgg_macs": vgg_lr["macs_inference"] / vgg["macs_inference"],
        "least_training": min(training),
        "most_training": max(training),
        "least_deployed": min(deployed),
        "most_deployed": max(deployed),
        "paper_full_behind": ends["Conv"] - ends["-Lr"],
        "paper_rank10_behind": ends["Conv"] - ends["-LRr"],
        "paper_unregularised_behind": ends["Conv"] - ends["-L"],
        "paper_regulariser_costs": ends["-L"] - ends["-Lr"],
        "early_full_behind": curves["Conv"][15] - curves["-Lr"][15],
        "early_rank10_behind": curves["Conv"][15] - curves["-LRr"][15],
        "fast_dense": fast["Base"],
        "fast_behind": fast["Base"] - fast["Base-L"],
        "fast_thinner_behind": fast["Base"] - thinner,
        "fast_ahead": fast["Base-L"] - thinner,
        "fast_regularised_ahead": fast["Base-Lr"] - thinner,
        "fast_rank10_behind": thinner - fast["Base-LRr"],
        "fast_macs_ahead": fast["Base-L"] - fast["Base-thinner-macs"],
        "vgg_behind": vgg_fast["-t dense"] - vgg_fast["-t rank -r 1 --reg-weight 0"],
        "vgg_thinner_behind": vgg_fast["-t dense"] - vgg_fast["-t dense --width 0.73"],
        "vgg_ghost_ahead": vgg_fast["-t ghost"] - vgg_fast["-t rank -r 1 --reg-weight 0"],
        "base_lost_57": lost["base", 0.57],
        "base_dense_tuned": -statistics.fmean(by_way["base"]["dense, 6 epochs, lr 0.001"][1.0]),
        "vgg_lost_57": lost["vgg11", 0.57],
        "vgg_lost_25": lost["vgg11", 0.25],
        "correlation": first["mean_absolute"]["primary"],
        "streamed": f"{streamed:.0f}",
        "streamed_torchvision": f"{theirs:.0f}",
    }
    for name, method in (("full", "-Lr"), ("unregularised", "-L")):
        reached = [epoch for epoch, accuracy in enumerate(curves[method], 1) if accuracy >= ends["Conv"]]
        found[f"{name}_reaches_dense"] = reached[0]
    for run in runs_of("time_base_fast"):
        seconds = next(record["seconds"] for record in run["log"] if record["test_accuracy"] >= 87.2)
        found[f"minutes_{run['report']['type']}"] = f"{seconds / 60:.1f}"
    return {name: f"{value:.2f}" if isinstance(value, float) else str(value) for name, value in found.items()}


def load(name: str) -> dict:
    """Return the content of a file in results/."""
    return read_json(RESULTS / f"{name}.json")


def runs_of(names: str) -> list[dict]:
    """Return the runs of result files whose names are separated by spaces."""
    return [run for name in names.split() for run in every_run(pattern=name)]


def counts_by_network() -> dict[str, dict]:
    """Return the rows of Table 1 by network and variant."""
    return {row["network"]: row for row in load("table1_counts")["rows"]}


def speeds(name: str) -> dict[tuple[str, str, str], float]:
    """Return the median ratios to dense in `<name>.json`, by network, task and contender."""
    return {key: statistics.median(ratios) for key, ratios in ratios_over_sittings(load(name)).items()}


def fast_rows() -> list[dict]:
    """Return the rows of Table 1 for Base with the short recipe."""
    return compare(every_run(pattern="table1_base_fast"))
