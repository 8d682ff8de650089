"""The numbers in the prose of README and docs/, from the files in results/."""

import statistics
from functools import cache

from benchmarks.measuring import ratios_over_sittings
from experiments.results import every_run, load
from experiments.sweep.table import summarise
from experiments.table1.accuracy import compare


@cache
def values() -> dict[str, str]:
    """Return the numbers in the prose, by name."""
    rows = counts_by_network()
    verdicts = [row[f"{figure}_verdict"] for row in rows.values() for figure in ("parameters", "flops")]
    training = [ratio for (_, _, name), ratio in speeds("speed_cpu_float32").items() if name == "full rank"]
    deployed = [ratio for (_, _, name), ratio in speeds("deployment_cpu_float32").items() if name == "deployed"]
    found = {"equal_figures": f"{verdicts.count('equal')}"}
    vgg, vgg_lr = rows["VGG11"], rows["VGG11-Lr"]
    found["vgg_paper_flops"] = f"{vgg_lr['flops_paper'] / vgg['flops_paper']:.0f}"
    found["vgg_macs"] = f"{vgg_lr['macs_inference'] / vgg['macs_inference']:.2f}"
    found |= {"least_training": f"{min(training):.2f}", "most_training": f"{max(training):.2f}"}
    found |= {"least_deployed": f"{min(deployed):.2f}", "most_deployed": f"{max(deployed):.2f}"}

    curves = {}  # Base with the paper's recipe: accuracies by epoch
    for run in every_run(pattern="base_paper_cifar10"):
        curves[run["method"]] = [record["test_accuracy"] for record in run["log"]]
    ends = {method: statistics.fmean(curve[-10:]) for method, curve in curves.items()}
    for name, method in (("full", "-Lr"), ("rank10", "-LRr"), ("unregularised", "-L")):
        found[f"paper_{name}_behind"] = f"{ends['Conv'] - ends[method]:.2f}"
    for name, method in (("full", "-Lr"), ("rank10", "-LRr")):
        found[f"early_{name}_behind"] = f"{curves['Conv'][15] - curves[method][15]:.2f}"
    for name, method in (("full", "-Lr"), ("unregularised", "-L")):
        reached = [epoch for epoch, accuracy in enumerate(curves[method], 1) if accuracy >= ends["Conv"]]
        found[f"{name}_reaches_dense"] = f"{reached[0]}"
    found["paper_regulariser_costs"] = f"{ends['-L'] - ends['-Lr']:.2f}"

    mean = {row["row"]: row["accuracy"][0] for row in fast_rows()}
    thinner = mean["Base-thinner-parameters"]
    found["fast_dense"] = f"{mean['Base']:.2f}"
    found["fast_behind"] = f"{mean['Base'] - mean['Base-L']:.2f}"
    found["fast_ahead"] = f"{mean['Base-L'] - thinner:.2f}"
    found["fast_regularised_ahead"] = f"{mean['Base-Lr'] - thinner:.2f}"
    found["fast_rank10_behind"] = f"{thinner - mean['Base-LRr']:.2f}"
    found["fast_macs_ahead"] = f"{mean['Base-L'] - mean['Base-thinner-macs']:.2f}"
    for run in load("time_base_fast")["runs"]:
        seconds = next(record["seconds"] for record in run["log"] if record["test_accuracy"] >= 87.2)
        found[f"minutes_{run['report']['type']}"] = f"{seconds / 60:.1f}"

    network = {}  # other networks by name and setting
    for row in summarise(runs_of("vgg11_fast resnet18_fast")):
        network[row["network"], row["setting"]] = row["accuracy"][0]
    free = network["VGG11", "-t rank -r 1 --reg-weight 0"]
    found["vgg_ghost_ahead"] = f"{network['VGG11', '-t ghost'] - free:.2f}"

    study = load("compress_base")
    rows = {row["method"]: row["accuracies"] for row in study["rows"] if row["kind"] != "from scratch"}
    best = rows["full rank, budget as alpha 0.5, calibrated"][0]
    found["budget_behind"] = f"{study['rows'][0]['accuracies'][-1] - best:.2f}"
    above_optimum = [100 * (layer["fitted"] / layer["optimum"] - 1) for layer in study["fit_quality"]]
    closer = [100 * (1 - layer["fitted"] / layer["first_filters"]) for layer in study["fit_quality"]]
    found["above_optimum"] = f"{max(above_optimum) + 0.005:.2f}"
    found |= {"least_closer": f"{min(closer):.0f}", "most_closer": f"{max(closer):.0f}"}
    first, *_ = next(run for run in load("correlation_base")["runs"] if run["name"] == "L")["layers"]
    found["correlation"] = f"{first['mean_absolute']['primary']:.2f}"
    trained, streamed, theirs = imagenet_rates()
    found |= {"gpu_rate": f"{trained:,.0f}", "streamed": f"{streamed:.0f}", "streamed_torchvision": f"{theirs:.0f}"}
    return found


def runs_of(names: str) -> list[dict]:
    """Return the runs of result files whose names are separated by spaces."""
    return [run for name in names.split() for run in load(name)["runs"]]


def counts_by_network() -> dict[str, dict]:
    """Return the rows of Table 1 by network and variant."""
    return {row["network"]: row for row in load("table1_counts")["rows"]}


def speeds(name: str) -> dict[tuple[str, str, str], float]:
    """Return the median ratios to dense in `<name>.json`, by network, task and contender."""
    return {key: statistics.median(ratios) for key, ratios in ratios_over_sittings(load(name)).items()}


def fast_rows() -> list[dict]:
    """Return the rows of Table 1 for Base with the short recipe."""
    return compare(list(every_run(pattern="table1_base_fast")), ["Base"])


def imagenet_rates() -> tuple[float, float, float]:
    """Return images per second: VGG11 training on a GPU, files streamed here, and files streamed by torchvision."""
    streamed, theirs = (row["images_per_second"] for row in load("stream_cpu")["rows"])
    for row in load("speed_cuda_bfloat16_graphs")["sittings"][0]["rows"]:
        if (row["network"], row["task"], row["contender"]) == ("VGG11", "train 1024", "full rank"):
            trained = row["images_per_second"]
    return trained, streamed, theirs
