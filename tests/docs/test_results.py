"""What prose and docstrings say of counts and accuracies in results/, and what these must hold."""

import importlib
import statistics

import pytest

from docs.tables import ROOT, load, measured
from experiments import paper
from experiments.results import every_run
from experiments.sweep.table import over_seeds
from experiments.table1.accuracy import compare
from tests.helpers.pages import TEXT
from tests.helpers.runs import SCRIPTS

SEARCHES = "search_linearconv", "search_30"
SETTINGS = {"Conv": "-t dense", "-Lr": "-t rank -r 1", "-LRr": "-t lowrank -r 10"}


def test_multiply_adds_in_readme_are_those_of_the_results():
    rows = {row["network"]: row["macs_inference"] for row in load("table1_counts")["rows"]}
    ratios = {name: rows[f"{name}-Lr"] / rows[name] for name in paper.ACCURACY}
    (least, low), *_, (most, high) = sorted(ratios.items(), key=lambda item: item[1])
    assert f"an image costs {low:.2f} ({least}) to {high:.2f} ({most}) of the dense network's" in TEXT["README.md"]


def test_number_of_equal_figures_is_that_of_the_results():
    verdicts = [row[f"{figure}_verdict"] for row in load("table1_counts")["rows"] for figure in ("parameters", "flops")]
    equal, figures = verdicts.count("equal"), len(verdicts)
    assert f"in {equal} of {figures} figures" in TEXT["README.md"]
    assert f"Of the {figures} figures {equal} come out as printed" in TEXT["counts.md"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_recipes_in_the_table_are_those_of_the_scripts(name):
    _, recipe, _ = SCRIPTS[name]
    drops = ", ".join(map(str, recipe.milestones)) or "-"
    line = next(line for line in (ROOT / "docs" / "training.md").read_text().splitlines() if f"/{name}_xcnn" in line)
    assert line.endswith(f" | {recipe.lr:g} | {drops} | {recipe.epochs} | {recipe.batch_size} |")


def test_distance_to_the_dense_network_after_16_epochs_is_that_of_the_results():
    runs = {run["setting"]: run for run in load("base_cifar10")["runs"]}
    assert all(len(run["log"]) == run["report"]["epochs"] == 16 for run in runs.values())
    settings = ("-t dense", "-t rank -r 1", "-t lowrank -r 10")
    dense, *ours = [runs[setting]["report"]["test_accuracy"] for setting in settings]
    behind = [dense - accuracy for accuracy in ours]
    assert "by {:.2f} (full rank) and {:.2f} (rank 10) points".format(*behind) in TEXT["accuracy.md"]
    printed = paper.accuracies("Base", "cifar10")
    assert f"{printed['Conv'] - printed['-Lr']:.1f} and 0.6 behind after 250 epochs" in TEXT["accuracy.md"]


def test_what_the_search_of_a_recipe_says_is_that_of_the_results():
    short, long = ({row["setting"]: row for row in over_seeds(load(name)["runs"])} for name in SEARCHES)
    plain = "-t rank -r 1 --reg-weight 0"
    of_filters, page = f"{plain} --decay filters", TEXT["accuracy.md"]
    gain = short[of_filters]["accuracy"][0] - short[plain]["accuracy"][0]
    assert short[of_filters]["seeds"] == short[plain]["seeds"] == 3
    assert f"by {gain:.1f} points over three seeds" in page
    decayed = {run["setting"]: run for run in load("search_decay_filters")["runs"]}[plain]["log"][-1]["train_loss"]
    kept = {run["setting"]: run for run in load("search_30")["runs"]}[f"{plain} --decay parameters"]
    losses = decayed, kept["log"][-1]["train_loss"]
    assert (
        "a loss of {:.2f} on all 50,000 training images, with decay of the parameters at {:.2f}".format(*losses) in page
    )
    ahead = kept["report"]["test_accuracy"] - long["-t dense --decay parameters --width 0.75"]["accuracy"][0]
    assert f"full rank is {ahead:.2f} points ahead of the dense network of as many parameters" in page


def test_what_the_papers_recipe_reaches_is_that_of_the_results():
    runs = {run["method"]: run for run in every_run(pattern="base_paper_cifar10")}
    dense, full, low, free = (
        [record["test_accuracy"] for record in runs[method]["log"]] for method in ("Conv", "-Lr", "-LRr", "-L")
    )
    assert len(dense) == len(full) == len(low) == len(free) == 250
    means = [statistics.fmean(log[-10:]) for log in (dense, full, low, free)]
    behind = [means[0] - mean for mean in means]
    reached = [next(epoch for epoch, accuracy in enumerate(log, 1) if accuracy >= means[0]) for log in (full, free)]
    page, printed = TEXT["accuracy.md"], paper.accuracies("Base", "cifar10")
    best = [max(log) for log in (dense, full, low)]
    assert abs(best[0] - printed["Conv"]) < 0.7 and max(low) < means[0]
    assert '{Conv} (dense), {-Lr} (full rank, "-0.1") and {-LRr} (rank 10, "-0.6")'.format(**printed) in page
    assert "the best are {:.1f}, {:.1f} and {:.1f}".format(*best) in page
    assert f"full rank is {behind[1]:.2f} behind and rank 10 is {behind[2]:.2f}" in page
    assert f"Without the regulariser full rank is {behind[3]:.2f} behind" in page
    assert f"costs accuracy, {means[3] - means[1]:.2f} points" in page
    early = [dense[15] - log[15] for log in (full, free, low)]
    assert "full rank is {:.2f} behind ({:.2f} without the regulariser, rank 10 {:.2f})".format(*early) in page
    assert f"at epoch {reached[0]}, without the regulariser at epoch {reached[1]}; rank 10 never" in page
    assert f"dense reaches {best[0]:.1f} and LinearConv {best[1]:.1f}" in TEXT["README.md"]
    shown = (
        "in the mean of the last ten epochs {:.1f} and {:.1f}, rank 10 {:.1f}, and full rank without the regulariser, "
        "{:.1f}."
    )
    assert shown.format(*means) in TEXT["README.md"]


def test_the_verdicts_stand_on_the_results():
    text = TEXT["results/README.md"]
    rows = {row["network"]: row for row in load("table1_counts")["rows"]}
    ratios = {
        key: {
            name + variant: rows[name + variant][key] / rows[name][key]
            for name in paper.ACCURACY
            for variant in ("-Lr", "-LRr")
        }
        for key in ("parameters", "flops_paper", "macs_inference")
    }
    halved = [name for name, ratio in ratios["parameters"].items() if ratio < 0.58]
    assert sum(name.endswith("-Lr") for name in halved) == 4  # "at full rank for four of six"
    low = {name for name in ratios["parameters"] if name.endswith("-LRr")}
    assert low - set(halved) == {"MobileNetV2-LRr"}
    flops, macs = ratios["flops_paper"], ratios["macs_inference"].values()
    assert f"up to {flops['VGG11-Lr']:.0f} times" in text and f"{flops['MobileNetV2-Lr']:.0f} times for Mob" in text
    assert f"an image costs {min(macs):.2f} to {max(macs):.2f} of" in text
    speeds = [
        row["ratio"]
        for row in load("speed_cpu_float32")["rows"]
        if (row["contender"], row["task"]) == ("full rank, auto", "infer 1")
    ]
    assert f"{min(speeds):.2f} to {max(speeds):.2f} times as fast" in text
    logs = {
        run["method"]: [record["test_accuracy"] for record in run["log"]]
        for run in every_run(pattern="base_paper_cifar10")
    }
    mean = {method: statistics.fmean(log[-10:]) for method, log in logs.items()}
    behind = {method: mean["Conv"] - value for method, value in mean.items()}
    assert f"(Base {behind['-Lr']:.2f} behind), at rank 10 not quite ({behind['-LRr']:.2f})" in text
    assert f"are -{behind['-Lr']:.2f} at full rank (the paper: -0.1), -{behind['-LRr']:.2f} at rank 10" in text
    assert f"and -{behind['-L']:.2f} at full rank without the regulariser" in text
    early = {method: logs["Conv"][15] - log[15] for method, log in logs.items()}
    assert f"full rank is {early['-Lr']:.2f} points behind, rank 10 {early['-LRr']:.2f}" in text
    assert f"ends higher than with it, by {mean['-L'] - mean['-Lr']:.2f} points" in text


def test_what_the_short_recipe_reaches_is_said_as_it_was_measured():
    runs = list(every_run(pattern="table1_base_fast"))
    rows = {row["row"].removeprefix("Base").strip("-"): row for row in compare(runs, ["Base"])}
    mean = {name: row["accuracy"][0] for name, row in rows.items()}
    less = {name: mean[""] - value for name, value in mean.items()}
    ahead = {name: value - mean["thinner-parameters"] for name, value in mean.items()}
    flipped = {}
    for run in runs:
        flipped.setdefault(run["method"], []).append(run["report"]["test_accuracy_with_flips"])
    text, seeds = TEXT["accuracy.md"], {row["seeds"] for row in rows.values()}
    squares = {name: row["accuracy"][1] ** 2 / row["seeds"] for name, row in rows.items()}
    errors = [(squares["L"] + squares[name]) ** 0.5 for name in ("thinner-parameters", "thinner-macs")]
    for said in (
        f"On the test images, {max(seeds)} seeds:",
        f"In 30 epochs the dense network has {mean['']:.2f} %",
        f"{less['L']:.2f} behind it, and **{ahead['L']:.2f} points ahead of the dense network of as many parameters**",
        f"{mean['L'] - mean['thinner-macs']:.2f} ahead of that of as many multiply-adds",
        "multiply-adds (standard errors {:.2f} and {:.2f}: the second may be chance)".format(*errors),
        f"With the regulariser it is {less['Lr']:.2f} behind the dense network and {ahead['Lr']:.2f} ahead of the",
        f"Rank 10 is {less['LRr']:.2f} behind, with fewer parameters still, and {-ahead['LRr']:.2f} behind the thinner",
        f"lose {less['half-rank']:.2f} and {less['sparse']:.2f}",
        "the dense network has {:.2f} %, full rank without the regulariser {:.2f}".format(
            *(statistics.fmean(flipped[method]) for method in ("Conv", "-L"))
        ),
    ):
        assert said in text, said
    for said in (
        f"over {max(seeds)} seeds, dense has {mean['']:.2f} and full rank without the regulariser {mean['L']:.2f}",
        f"has {mean['thinner-parameters']:.2f} by the same recipe, {ahead['L']:.2f} less than full rank without the "
        f"regulariser, {ahead['Lr']:.2f} less than with it; rank 10 is {-ahead['LRr']:.2f} below",
    ):
        assert said in TEXT["README.md"], said
    said = "they are {:+.2f}, {:+.2f} and {:+.2f}; the dense network of as many parameters is at {:+.2f}"
    said = said.format(*(-less[name] for name in ("Lr", "LRr", "L", "thinner-parameters")))
    assert f"{max(seeds)} seeds" in TEXT["results/README.md"] and said in TEXT["results/README.md"]


def test_what_starts_and_regulariser_do_at_rank_10_is_that_of_the_results():
    runs = {run["setting"].split("-r 10 ")[1]: run["report"]["test_accuracy"] for run in load("search_lowrank")["runs"]}
    at = {
        (w, i): runs[f"--reg-weight {w} --init {i}"]
        for w in ("0", "0.01")
        for i in ("published", "balanced", "spectral")
    }
    costs = [at["0", init] - at["0.01", init] for init in ("published", "balanced", "spectral")]
    gains = [at[weight, "spectral"] - at[weight, "published"] for weight in ("0", "0.01")]
    assert f"costs {min(costs):.2f} to {max(costs):.2f} points" in TEXT["accuracy.md"]
    assert "gains {:.2f} without it and {:.2f} with it".format(*gains) in TEXT["accuracy.md"]
    assert {f"{at[weight, 'balanced'] - at[weight, 'published']:.1f}" for weight in ("0", "0.01")} == {"0.1"}


def test_what_is_said_of_other_networks_is_that_of_the_results():
    names = ("vgg11", "resnet18", "allconv", "squeezenet")
    rows = {(name, row["setting"]): row for name in names for row in over_seeds(load(f"{name}_fast")["runs"])}
    mean = {key: row["accuracy"][0] for key, row in rows.items()}
    count = {key: row["parameters"] for key, row in rows.items()}
    full, regularised, low = "-t rank -r 1 --reg-weight 0", "-t rank -r 1", "-t lowrank -r 10"
    thinner = {"vgg11": "--width 0.73", "resnet18": "--width 0.735", "allconv": "--width 0.734"}
    thinner = {name: f"-t dense {width}" for name, width in thinner.items()}
    loss = {(name, setting): mean[name, "-t dense"] - value for (name, setting), value in mean.items()}
    ahead = {(n, s): mean[n, s] - mean[n, other] for n, other in thinner.items() for s in (full, regularised)}
    behind = {name: mean["vgg11", full] - mean["vgg11", f"-t {name}"] for name in ("octave", "basis", "ghost", "svd")}
    macs = {setting: rows["vgg11", setting]["macs_inference"] for setting in (full, "-t octave")}
    lost = {
        setting: tuple(loss[name, setting] for name in ("vgg11", "resnet18")) for setting in (full, regularised, low)
    }
    for said in (
        f"loses {lost[full][0]:.2f} points on VGG11 without the regulariser and {lost[regularised][0]:.2f} with it, on "
        f"ResNet18 {lost[full][1]:.2f} and {lost[regularised][1]:.2f}; rank 10 loses {lost[low][0]:.2f} and "
        f"{lost[low][1]:.2f}",
        f"{ahead['vgg11', full]:.2f} ahead without the regulariser and {-ahead['vgg11', regularised]:.2f} behind with",
        f"on ResNet18 it is {-ahead['resnet18', full]:.2f} and {-ahead['resnet18', regularised]:.2f} behind, one seed",
        f"with {100 * (1 - count['vgg11', '-t ghost'] / count['vgg11', full]):.0f} % fewer parameters, are "
        f"{-behind['ghost']:.2f} ahead of full rank",
        f"{behind['octave']:.2f} behind full rank, with all parameters and "
        f"{100 * (1 - macs['-t octave'] / macs[full]):.0f} % fewer multiply-adds",
        f"a learned basis {behind['basis']:.2f} behind",
        f"(`-t svd`) {behind['svd']:.2f} behind",
        f"AllConv is at {mean['allconv', '-t dense']:.2f} %",
        f"{ahead['allconv', full]:.2f} ahead of the thinner network, and loses "
        f"{mean['allconv', full] - mean['allconv', regularised]:.2f} by the regulariser",
    ):
        assert said in TEXT["accuracy.md"], said
    gains = [mean[name, full] - mean[name, regularised] for name in ("vgg11", "allconv", "resnet18")]
    for page, said in (
        (
            "results/README.md",
            f"VGG11 does by {gains[0]:.2f} over 3 seeds and AllConv by {gains[1]:.2f}, one seed, ResNet18 ends "
            f"{-gains[2]:.2f} lower",
        ),
        ("README.md", f"on ResNet-18 it is {-ahead['resnet18', regularised]:.2f} behind"),
        (
            "results/README.md",
            f"VGG11 -{lost[regularised][0]:.2f} at full rank, -{lost[low][0]:.2f} at rank 10, over 3 seeds; "
            f"ResNet18 -{lost[regularised][1]:.2f} and -{lost[low][1]:.2f}, one seed",
        ),
        ("results/README.md", f"loses as much on VGG11 (-{loss['vgg11', thinner['vgg11']]:.2f})"),
        ("results/README.md", f"less on ResNet18 (-{loss['resnet18', thinner['resnet18']]:.2f})"),
        ("results/README.md", f"Ghost modules lose least on VGG11 (-{loss['vgg11', '-t ghost']:.2f})"),
    ):
        assert said in TEXT[page], said
    assert 0.38 < count["vgg11", "-t basis"] / count["vgg11", full] < 0.42  # two fifths
    plain, *others = load("allconv_fast_lr0.01")["runs"]
    assert f"learning rate of 0.01 AllConv has {plain['report']['test_accuracy']:.2f} %" in TEXT["accuracy.md"]
    stopped = [run["report"] for run in others if "rank" in run["setting"]]
    assert {(report["test_accuracy"], report["best_epoch"]) for report in stopped} == {(10.0, 2)}
    assert {(report["epochs"], report["recipe"]) for report in _reports(names)} == {(12, "fast")}
    gpu = "NVIDIA H100 80GB HBM3", "2.11.0+cu130"
    assert {r["width"] for r in _reports(names) if (r["device"], r["torch"]) != gpu} == {0.709}
    behind = {setting: value - mean["vgg11", low] for (name, setting), value in mean.items() if name == "vgg11"}
    same = behind["-t dense --width 0.709"]
    assert f"Rank 10 on VGG11 is {same:.2f} behind a thinner network" in TEXT["accuracy.md"]
    said = "comes out {:.2f} above octave convolution and {:.2f} below a learned basis (the paper: 0.5 and 0.5). It is "
    said += "{:.2f} below a thinner plain network of as many parameters, and {:.2f} below Ghost modules"
    said = said.format(-behind["-t octave"], behind["-t basis"], same, behind["-t ghost"])
    assert said in TEXT["methods.md"], said
    hundred = {row["setting"]: row for row in over_seeds(load("table1_cifar100")["runs"])}
    wide, ours, rank10 = (hundred[s]["accuracy"][0] for s in ("-t dense --width 0.785", regularised, low))
    assert f"({ours:.2f} and {wide:.2f}); rank 10 is {wide - rank10:.2f} below" in TEXT["accuracy.md"]


def _reports(names):
    return [run["report"] for name in names for run in load(f"{name}_fast")["runs"]]


def test_what_ablations_say_is_that_of_the_results():
    names = "alpha", "rank", "reg", "sparsity"
    by_name = {name: {run["setting"]: run["report"] for run in load(f"ablation_{name}")["runs"]} for name in names}
    settings = {name: {key: report["test_accuracy"] for key, report in by_name[name].items()} for name in names}
    page, alpha, full = TEXT["accuracy.md"], settings["alpha"], settings["rank"]["-t rank -r 1"]
    shares = [alpha[setting] for setting in ("-t rank -r 1 --alpha 0.125", "-t rank -r 1", "-t rank -r 1 --alpha 0.75")]
    assert "{:.2f} % with an eighth of them, {:.2f} with half, {:.2f} with three quarters".format(*shares) in page
    count = {key: report["parameters"] for key, report in (by_name["alpha"] | by_name["rank"]).items()}
    share = count["-t rank -r 1 --alpha 0.75"] / count["-t dense"]
    assert f"level with the dense network ({alpha['-t dense']:.2f}) at {100 * share:.0f} % of its parameters" in page
    ranks = settings["rank"]
    fewer = 100 * (1 - count["-t lowrank -r 1"] / count["-t rank -r 1"])
    assert f"rank 1 has {ranks['-t lowrank -r 1']:.2f} % with {fewer:.0f} % fewer parameters than full rank" in page
    behind = (full - ranks[setting] for setting in ("-t lowrank -r 1", "-t lowrank -r 8", "-t rank -r 0.5"))
    assert "which is {:.2f} behind, rank 8 {:.2f}, half rank {:.2f}".format(*behind) in page
    plain, *costs = settings["reg"].values()
    costs = [plain - accuracy for accuracy in costs]
    assert "costs {:.2f} points there, {:.2f} at the paper's weight and {:.2f} at ten times".format(*costs) in page
    left = [run["log"][-1]["correlation"] for run in load("ablation_reg")["runs"][1::-1]]
    assert "leaves a correlation of {:.3f} instead of {:.3f}".format(*left) in page
    assert f"leaves a correlation of {left[0]:.3f}" in TEXT["results/README.md"]
    said = "it costs {:.2f} points instead of {:.2f}".format(*costs)
    assert said in TEXT["results/README.md"]
    pruned = settings["sparsity"]["-t sparse -s 0.9"]
    assert f"with nine of ten coefficients pruned the network is {full - pruned:.2f} behind full rank" in page


def test_correlations_are_those_of_the_results():
    runs = {run["name"]: run["layers"] for run in load("correlation_base")["runs"]}
    shown = [
        "{:.2f}, {:.2f} and {:.2f}".format(*(layer["mean_absolute"][block] for layer in runs[name]))
        for block in ("primary", "secondary")
        for name in ("L", "Lr")
    ]
    assert shown[1] == "0.00, 0.00 and 0.00"
    text = TEXT["results/README.md"]
    assert f"falls from {shown[0]} in the first three layers of Base to 0.00" in text
    assert f"that of the secondary ones from {shown[2]} to {shown[3]}" in text


def test_accuracies_with_a_falling_learning_rate_are_those_of_the_results():
    rows = {row["method"]: row for row in load("compress_base")["rows"] if row["kind"] == "from scratch"}
    last = [rows[method]["accuracies"][-1] for method in ("dense", "full rank, alpha 0.5", "rank 10")]
    assert "{:.2f} % (dense), {:.2f} % (full rank) and {:.2f} % (rank 10)".format(*last) in TEXT["accuracy.md"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstrings_of_scripts_give_what_was_measured(name):
    """Behind the counts of each setting its accuracy, and the option that the commands above were run with."""
    text = importlib.import_module(f"models.{name}_xcnn").__doc__
    first_network = next(iter(SCRIPTS[name][0]))
    for method, reports in measured(first_network).items():
        if method not in SETTINGS:
            continue
        setting = SETTINGS[method]
        shown = setting.replace("-t ", "").replace("-r ", "")
        line = next(line for line in text.splitlines() if line.startswith(f"    {shown} "))
        accuracies, epochs = [report["test_accuracy"] for report in reports], reports[0]["epochs"]
        assert line.endswith(f" {statistics.fmean(accuracies):.2f} %")
        command = f"python models/{name}_xcnn.py"
        assert f"    {command} {setting} " in text and f"`--epochs {epochs}`" in text
        assert all(report["command"].startswith(f"{command} ") for report in reports)


def test_precisions_agree_within_the_noise_of_seeds():
    accuracies = {}
    for run in load("precision_digits")["runs"]:
        accuracies.setdefault(run["setting"], []).append(run["report"]["test_accuracy"])
    reference = accuracies["--no-amp"]
    for values in accuracies.values():
        assert len(values) == 5
        noise = (statistics.variance(values) / 5 + statistics.variance(reference) / 5) ** 0.5
        assert abs(statistics.mean(values) - statistics.mean(reference)) <= 2.5 * noise + 1e-9


def test_time_to_the_accuracy_of_the_paper_is_that_of_the_results():
    minutes = {}
    for run in load("time_base_fast")["runs"]:
        assert run["report"]["threads"] == 2
        reached = next(epoch for epoch in run["log"] if epoch["test_accuracy"] >= 87.2)
        minutes[run["report"]["type"]] = reached["seconds"] / 60
    said = "On two cores dense is at 87.2 after {dense:.1f} minutes, LinearConv after {rank:.1f}"
    for page in ("README.md", "accuracy.md"):
        assert said.format(**minutes) in TEXT[page]
