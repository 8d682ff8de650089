"""What prose and docstrings say of the files in results/, and what these must hold."""

import importlib
import statistics

import pytest

import linearconv_features
from benchmarks import layers
from benchmarks.contenders import CONDITIONS, NETWORKS
from docs.tables import PAGES, ROOT, load, measured
from experiments import paper
from experiments.reading import every_run
from experiments.sweep_table import over_seeds
from experiments.table1_accuracy import compare
from tests.helpers.runs import SCRIPTS
from training.recipes import TUNE

SEARCHES = "search_linearconv", "search_30"
SETTINGS = {"Conv": "-t dense", "-Lr": "-t rank -r 1", "-LRr": "-t lowrank -r 10"}
TEXT = {
    page.relative_to(ROOT).as_posix().removeprefix("docs/"): " ".join(page.read_text().split()) for page in PAGES
}  # each run of white space as one space


# ---- counts --------------------------------------------------------------------------------------------------------


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


# ---- accuracy ------------------------------------------------------------------------------------------------------


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
        "which here costs accuracy, {:.1f}."
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
    assert f"Base is {behind['-Lr']:.2f} behind at full rank, {behind['-LRr']:.2f} at rank 10" in text
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
    of = {(n, run["setting"]): run["report"] for n in ("vgg11", "resnet18") for run in load(f"{n}_fast")["runs"]}
    of = {key: report["test_accuracy"] for key, report in of.items()}
    vgg11 = of["vgg11", "-t dense"] - of["vgg11", "-t rank -r 1"]
    resnet18 = of["resnet18", "-t dense"] - of["resnet18", "-t rank -r 1 --reg-weight 0"]
    said = f"by {vgg11:.2f} points on VGG11 with the regulariser and by {resnet18:.2f} on ResNet18 without"
    assert said in " ".join(TEXT["accuracy.md"].split())
    rivals = of["vgg11", "-t octave"], of["vgg11", "-t basis"]
    assert of["vgg11", "-t rank -r 1"] > max(rivals) > of["vgg11", "-t lowrank -r 10"] > min(rivals)


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
    assert "which is {:.2f} behind, rank 8 {:.2f}, half rank {:.2f}".format(*behind) in " ".join(page.split())
    plain, *costs = settings["reg"].values()
    costs = [plain - accuracy for accuracy in costs]
    assert "costs {:.2f} points there, {:.2f} at the paper's weight and {:.2f} at ten times".format(*costs) in page
    left = [run["log"][-1]["correlation"] for run in load("ablation_reg")["runs"][1::-1]]
    assert "leaves a correlation of {:.3f} instead of {:.3f}".format(*left) in page
    assert f"leaves a correlation of {left[0]:.3f}" in TEXT["results/README.md"]
    said = "it costs {:.2f} points instead of {:.2f}".format(*costs)
    assert said in " ".join(TEXT["results/README.md"].split())
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


# ---- conversion ----------------------------------------------------------------------------------------------------


def test_what_is_said_of_budgets_is_what_was_measured():
    page = " ".join(TEXT["conversion.md"].split())
    rows = {row["method"]: row for row in load("compress_base")["rows"] if row["kind"] != "from scratch"}
    start = {method: row["accuracies"][0] for method, row in rows.items()}
    dense = load("compress_base")["rows"][0]["accuracies"][-1]
    budget, uniform = "full rank, budget as alpha {}, calibrated", "full rank, alpha {}, calibrated"
    assert start[budget.format(0.5)] >= 84 and start[budget.format(0.5)] > start[uniform.format(0.5)]
    half = start[budget.format(0.5)], dense - start[budget.format(0.5)], start[uniform.format(0.5)]
    said = "{:.2f} % without any training, {:.2f} behind the dense network, where one alpha of the same size,"
    assert (said + " calibrated too, has {:.2f}").format(*half) in page
    quarter = start[budget.format(0.25)], start[uniform.format(0.25)]
    assert "{:.2f} against {:.2f}".format(*quarter) in page
    assert f"({rows[budget.format(0.5)]['accuracies'][-1]:.2f} after the second)" in page
    of_57 = [row for row in rows.values() if 225_000 < row["parameters"] < 230_000 and row["method"] != "Tucker"]
    ends = [row["accuracies"][-1] for row in of_57]
    assert f"the ways of 57 % lie within {max(ends) - min(ends):.1f} points" in page


def test_fits_of_trained_filters_are_as_close_to_the_optimum_as_the_page_says():
    farther, closer = [], []
    for layer in load("compress_base")["fit_quality"]:
        assert layer["optimum"] <= layer["fitted"] * (1 + 1e-6) and layer["largest_coefficient"] < 1e4
        farther.append(100 * (layer["fitted"] / layer["optimum"] - 1))
        closer.append(100 * (1 - layer["fitted"] / layer["first_filters"]))
    assert f"within {max(farther) + 0.005:.2f} % of the Eckart-Young optimum" in TEXT["conversion.md"]
    assert f"{min(closer):.0f} to {max(closer):.0f} % closer than keeping the first half" in TEXT["conversion.md"]


def test_time_to_the_accuracy_of_the_paper_is_that_of_the_results():
    minutes = {}
    for run in load("time_base_fast")["runs"]:
        assert run["report"]["threads"] == 2
        reached = next(epoch for epoch in run["log"] if epoch["test_accuracy"] >= 87.2)
        minutes[run["report"]["type"]] = reached["seconds"] / 60
    said = "On two cores alone dense is at 87.2 after {dense:.1f} minutes and LinearConv after {rank:.1f}"
    for page in ("README.md", "accuracy.md"):
        assert said.format(**minutes) in " ".join(TEXT[page].split())


def test_what_is_said_of_the_pitch_tracker_is_what_was_measured():
    page, record = TEXT["conversion.md"], load("real_network")
    rows = {name: {row["way"]: row for row in parts["accuracy"]["rows"]} for name, parts in record.items()}
    before = {way: row["converted"]["10 dB"] for way, row in rows["tiny"].items()}
    ours = {way for way in before if way.startswith(("one alpha", "budget"))}
    assert before["budget, calibrated"] > 80 and max(before["one alpha"], before["one alpha, calibrated"]) < 20
    assert f"at most {max(before[way] for way in before.keys() - ours - {'dense'}):.0f} %" in page
    assert f"a budget that is not calibrated finds {before['budget']:.0f})" in " ".join(page.split())
    dense = before.pop("dense")
    after = {way: rows["tiny"][way]["distilled"] for way in before}
    assert max(abs(row["10 dB"] - dense) for row in after.values()) <= 0.5
    assert min(row["0 dB"] for row in after.values()) > rows["tiny"]["dense"]["converted"]["0 dB"]
    full = {way: row["converted"]["10 dB"] for way, row in rows["full"].items()}
    lost = full["dense"] - min(full[way] for way in full.keys() - {"uniform channel pruning"})
    assert f"loses at most {lost:.1f} points with noise of 10 dB, in any way but pruning" in page
    times = {}
    for name, parts in record.items():
        for row in parts["latency"]["rows"]:
            if row["batch"] == 1:
                times.setdefault((name, row["way"]), []).append(f"{row['ratio']:.2f}")
    said = (
        "LinearConv runs it {} times as fast in torch and {} times in onnxruntime (by a budget; one alpha for all"
        " layers {} and {}), the SVD pair {} and {}, and Tucker, at as good an accuracy, {} and {}. A calibrated budget"
        " takes more multiply-adds for as many parameters, and is slower ({} and {})."
    )
    ways = "budget", "one alpha", "SVD as two convolutions", "Tucker", "budget, calibrated"
    assert said.format(*(ratio for way in ways for ratio in times["full", way])) in " ".join(page.split())
    tiny = [ratio for way in ours for ratio in times["tiny", way]]
    assert f"too small to become faster ({min(tiny)} to {max(tiny)})" in " ".join(page.split())


def test_files_that_keep_the_factors_are_smaller():
    bytes_of = {(row["network"], row["file"]): row["bytes"] for row in load("deployment_cpu")["rows"]}
    for network, _ in bytes_of:
        assert bytes_of[network, "features"] < 0.62 * bytes_of[network, "dense"]


# ---- speed ---------------------------------------------------------------------------------------------------------


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


def test_what_is_said_of_slower_cells_is_what_was_measured():
    cells = {
        (precision, row["network"], row["task"], row["contender"]): f"{row['ratio']:.2f}"
        for precision in ("float32", "bfloat16")
        for row in load(f"speed_cpu_{precision}")["rows"]
    }
    full, mobile, base = "full rank, auto", ("float32", "MobileNetV2"), ("bfloat16", "Base")
    page = " ".join(TEXT["speed.md"].split())
    assert f"MobileNetV2 in float32, 50 images** ({cells[*mobile, 'train 50', full]})" in page
    assert f"a fifth of that ({cells[*mobile, 'train 256', full]})" in page
    at_50 = (cells[*base, "train 50", f"{name}, auto"] for name in ("rank 10", "half rank", "full rank"))
    assert "(rank 10 {}, half rank {}; full rank {})".format(*at_50) in page
    assert f"With 256 images: {cells[*base, 'train 256', full]}." in page
    ones = (cells["float32", network, "infer 1", full] for network in ("MobileNetV2", "ResNeXt29"))
    assert "One image in float32**, MobileNetV2 {} and ResNeXt-29 {}.".format(*ones) in page


@pytest.mark.parametrize(
    "measured, least, mean", [("float32", 0.95, 0.99), ("bfloat16", 0.92, 0.99), ("bfloat16_amx", 0.89, 0.98)]
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


def test_what_learning_rates_did_after_conversion_is_that_of_the_results():
    result = load("tune_base")
    rows = {(row["way"], row["lr"]): [loss for loss, _ in row["points"]] for row in result["rows"]}
    (start, _), (dense, _) = result["converted"], result["dense"]
    assert rows["Adam, constant", 1e-4][1] > start * 1.02 and rows["Adam, constant", 3e-3][0] > 10 * start
    assert all(rows["tune", rate][1] < start for rate in (3e-5, 1e-4))
    assert all(rows["tune", rate][-1] < dense for rate in (3e-5, 1e-4, 3e-4)) and rows["tune", 1e-3][-1] > dense
    assert all(rows["tune, --clip 1", rate][-1] >= rows["tune", rate][-1] for rate in (1e-4, 3e-4, 1e-3))
    assert "even 1e-4 makes the network worse at first, and 3e-3 undoes it" in TEXT["zoo.md"]
    assert "up to 3e-4 the end is better than the dense network" in TEXT["zoo.md"]
    assert "AdamW at 1e-4" in TEXT["zoo.md"] and TUNE.lr == 1e-4


def test_scripts_start_in_about_the_time_that_importing_torch_takes():
    ratios = {row["command"].split()[-1]: row["cpu_seconds_ratio"] for row in load("startup_cpu")["rows"]}
    assert ratios["--help"] < 1.3 and ratios["--count-only"] < 2
