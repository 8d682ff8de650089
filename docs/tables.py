"""The tables and the numbers in the prose of README and docs/, from the files in results/ and the scripts' parser.

    python -m docs.tables        # rewrites all of them, each between its marks

A table is between `<!-- docs/tables.py: NAME -->` and `<!-- end -->`, a number between `<!-- value: NAME -->` and
`<!-- end -->`.
"""

import html
import importlib
import re
import statistics
from functools import partial

from benchmarks.measuring import markdown as speed_table
from benchmarks.measuring import ratios_over_sittings
from docs.values import counts_by_network, fast_rows, load, runs_of, speeds, values
from experiments import paper
from experiments.compress.table import AT_ONCE, FROM_SCRATCH, losses, markdown_of_losses, mean_lost, sizes_and_speeds
from experiments.markdown import markdown_table
from experiments.results import comparable, describe_training, every_run, mean_over_seeds
from experiments.sweep import table as sweep_table
from experiments.table1 import __main__ as table1
from experiments.table1 import counts as table1_counts
from experiments.table2 import __main__ as table2
from experiments.thinner import networks_of
from models import resnet_xcnn, zoo_xcnn
from training.options import make_parser
from training.report import ROOT

PAGES = (ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"(<!-- docs/tables\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"(<!-- value: (\w+) -->).*?(<!-- end -->)", re.DOTALL)
SCRIPTS = ("base", "vgg", "allconv", "resnet", "resnext", "mobilenetv2", "squeezenet")
NOT_FOR_TABLES = ("ablation_", "search_")
FAST_COLUMNS = {key: title for key, title in table1.COLUMNS.items() if key != "dataset"}
OTHER_NETWORKS = "vgg11_fast resnet18_fast allconv_fast squeezenet_fast"


def sweep(names: str, columns: str) -> list[str]:
    """Return the table of all runs in the named result files."""
    return sweep_table.markdown(runs_of(names), columns.split())


def lost(name: str) -> list[str]:
    """Return the table of the accuracy lost in a compression study."""
    return markdown_of_losses(load(name)["runs"])


def measured(architecture: str, recipe: str = "paper") -> dict[str, list[dict]]:
    """Return the runs of a network on CIFAR-10 with a recipe and its largest number of epochs, by method."""
    groups = comparable(run for run in every_run() if not run["file"].startswith(NOT_FOR_TABLES))
    epochs = [key[-1] for key in groups if key[:-1] == (architecture, "cifar10", recipe)]
    return groups[architecture, "cifar10", recipe, max(epochs)] if epochs else {}


def summary() -> list[str]:
    """Return README's third table: full rank against dense, with our accuracies and the paper's."""
    rows, counts = [], counts_by_network()
    training, inference = speeds("speed_cpu_float32"), speeds("deployment_cpu_float32")
    for name, network in paper.NETWORKS.items():
        parameters = f"{counts[name]['parameters_ours']} → {counts[f'{name}-Lr']['parameters_ours']}"
        runs, recipe = measured(network.__name__, "paper"), "paper"
        if not {"Conv", "-Lr"} <= runs.keys():
            runs, recipe = measured(network.__name__, "fast"), "fast"
        accuracy, conditions = "not measured", ""
        if {"Conv", "-Lr"} <= runs.keys():
            (dense, _), (ours, _) = mean_over_seeds(runs["Conv"]), mean_over_seeds(runs["-Lr"])
            accuracy = f"{dense:.1f} → {ours:.1f}"
            conditions = describe_training(recipe, runs["-Lr"][0]["report"]["epochs"], [len(runs["-Lr"])])
        printed, key = paper.accuracies(name, "cifar10"), name.replace("-", "")
        row = [name, parameters, accuracy, conditions, f"{printed['Conv']:.1f} → {printed['-Lr']:.1f}"]
        for ratio in (training.get((key, "train 50", "full rank")), inference.get((key, "infer 8", "deployed"))):
            row.append(f"{ratio:.2f}" if ratio else "not measured")
        rows.append(row)
    header = ["network", "parameters, M", "accuracy, %", "training", "paper, %", "training speed", "deployed speed"]
    return markdown_table(header, rows)


def half() -> list[str]:
    """Return README's first table: VGG11 trained for a few epochs, and converted without further training."""
    reports = [run["report"] for run in load("half_vgg11")["runs"] if "way" in run["report"]]
    reports.sort(key=lambda report: -report["budget"])  # the dense network first, with new BatchNorm statistics too
    accuracies = [f"{report['test_accuracy']:.2f}" for report in reports]
    speeds = [f"{report['speed']['torch']:.2f}" for report in reports]
    rows = [["test accuracy, %", *accuracies], ["speed at inference", *speeds]]
    return markdown_table(["parameters", *(f"{report['parameters'] / 1e6:.2f} M" for report in reports)], rows)


def kept() -> list[str]:
    """Return README's second table: the accuracy lost at each size by conversion, and by networks from scratch."""
    shown, rows = (0.75, 0.57, 0.5, 0.4, 0.25, 0.15), []
    for network, name in (("VGG11", "compression_vgg11"), ("Base", "compression_base")):
        found, accuracy = losses(load(name)["runs"])
        tuned = [way for way in found if way.startswith("LinearConv, ") and way.endswith("teacher")]
        longest = max(tuned, key=lambda way: int(way.split()[1]))  # `LinearConv, 6 epochs, ...`
        for way in [f"LinearConv, {AT_ONCE}", longest, *(way for way in found if FROM_SCRATCH in way)]:
            cells = [mean_lost(found[way][size]) if size in found[way] else "" for size in shown]
            seeds = min(map(len, found[way].values()))
            rows.append([f"{network}, {accuracy:.2f} %", way, *cells, str(seeds)])
    header = ["dense network", "way", *(f"{100 * size:g} %" for size in shown), "seeds"]
    return markdown_table(header, rows, left=2)


def balanced() -> list[str]:
    """Return the accuracy that tuned LinearConv networks lose, with their own and with balanced parameters."""
    own, _ = losses(load("tune_plain_base")["runs"])
    found, _ = losses(load("compression_base")["runs"])
    ways = [way for way in own if way.startswith("LinearConv") and way in found]
    sizes, rows = sorted(found[ways[0]], reverse=True), []
    for way in sorted(ways):
        for name, each in (("own", own), ("balanced", found)):
            rows.append([way.partition(", ")[2], name, *(mean_lost(each[way][size]) for size in sizes)])
    return markdown_table(["training", "parameters", *(f"{100 * size:g} %" for size in sizes)], rows, left=2)


def recipes() -> list[str]:
    """Return the scripts with their networks and recipes."""
    rows = []
    for name in SCRIPTS:
        script = f"models/{name}_xcnn.py"
        networks, recipe = networks_of(ROOT / script), importlib.import_module(f"models.{name}_xcnn").RECIPE
        drops = ", ".join(map(str, recipe.milestones)) or "-"
        numbers = f"{recipe.lr:g}", drops, str(recipe.epochs), str(recipe.batch_size)
        rows.append([f"`{script}`", ", ".join(networks), *numbers])
    return markdown_table(["script", "networks", "lr", "x0.1 after epochs", "epochs", "batch"], rows, left=2)


def options() -> list[str]:
    """Return the options of the training scripts, grouped."""
    rows, parser = [], make_parser(networks_of(ROOT / "models" / "resnet_xcnn.py"), resnet_xcnn.RECIPE)
    for group in parser._action_groups:
        if actions := [action for action in group._group_actions if action.dest != "help"]:
            rows += [[f"**{group.title}**", "", ""], *map(option, actions)]
    return markdown_table(["option", "values", "meaning"], rows, left=3)


def zoo_options() -> list[str]:
    """Return the options of zoo_xcnn.py that other scripts lack, or that have other values there."""
    others = make_parser({"": None}, resnet_xcnn.RECIPE)._option_string_actions
    rows = []
    for action in make_parser(zoo_xcnn.Library(), zoo_xcnn.RECIPE)._actions:
        other = others.get(action.option_strings[0])
        if other is None or action.required or (action.choices != other.choices and action.dest != "type"):
            rows.append(option(action))
    return markdown_table(["option", "values", "meaning"], rows, left=3)


def option(action) -> list[str]:
    """Return the table row of an option."""
    called = ", ".join(f"`{name}`" for name in action.option_strings)
    choices = " ".join(f"`{choice}`" for choice in action.choices or ())
    values = choices or action.metavar or ("number" if action.type else "")
    return [called, values, html.escape(action.help, quote=False)]


def search() -> list[str]:
    """Return the validation accuracies from which the short recipe is chosen."""
    reports = [run["report"] for run in runs_of("search_optimizer search_dense")]
    rows = []
    for report in sorted(reports, key=lambda report: -report["test_accuracy"]):
        settings = "{optimizer}, lr {lr:g}, weight decay {weight_decay:g}, {schedule}, batch {batch_size}, "
        settings = (settings + "label smoothing {label_smoothing:g}, {flip} flip").format(**report)
        if report["average"]:
            settings += f", average {report['average']:g}"
        if report["bias_lr"] != 1:
            settings += f", BatchNorm biases {report['bias_lr']:g} times as fast"
        rows.append([settings, f"{report['test_accuracy']:.2f} %"])
    return markdown_table(["settings", "validation accuracy"], rows)


def search_linearconv() -> list[str]:
    """Return the validation accuracies of LinearConv training settings with the short recipe, over seeds."""
    rows = sweep_table.summarise(runs_of("search_linearconv search_lowrank search_30"))
    rows.sort(key=lambda row: (row["epochs"], -row["accuracy"][0]))
    columns = {"setting": "options", "epochs": "epochs", "parameters": "parameters", "accuracy": "validation accuracy"}
    return sweep_table.table(rows, {**columns, "seeds": "seeds"})


def ablations() -> list[str]:
    """Return the accuracies of Base with one setting varied; a setting in several ablations has one row."""
    runs = {}
    for name in ("alpha", "rank", "reg", "sparsity"):
        listed = runs_of(f"ablation_{name}")
        if name == "rank":  # shares first, each from low to high
            listed.sort(key=lambda run: (run["report"]["type"] == "lowrank", run["report"]["rank"]))
        for run in listed:
            varied = tuple(run["report"][key] for key in ("type", "alpha", "rank", "reg_weight", "sparsity"))
            runs.setdefault(varied, run)
    columns = "setting parameters nonzero_parameters macs_inference accuracy against_dense correlation"
    return sweep_table.markdown(list(runs.values()), columns.split())


def pruned() -> list[str]:
    """Return the share of coefficients that the two controllers of the sparse variant pruned."""
    rows = []
    for run in runs_of("sparse_controllers"):
        report, share = run["report"], f"{100 * run['log'][-1]['pruned']:.1f} %"
        parameters = f"{report['nonzero_parameters']:,} of {report['parameters']:,}"
        rows.append([f"`{run['setting']}`", share, parameters, f"{report['test_accuracy']:.2f} %"])
    return markdown_table(["setting", "coefficients pruned", "nonzero parameters", "test accuracy"], rows)


def shares() -> list[str]:
    """Return parameters and operations of full rank and rank 10 relative to dense, for each network."""
    rows, counts = [], counts_by_network()
    for name in paper.NETWORKS:
        row = [name]
        for key in ("parameters", "flops_paper", "macs_inference"):
            for variant in ("-Lr", "-LRr"):
                ratio = counts[name + variant][key] / counts[name][key]
                row.append(f"{100 * (ratio - 1):+.0f} %" if key == "parameters" else f"x {ratio:.2f}")
        rows.append(row)
    header = ["network", "parameters, full rank", "rank 10", "FLOPs by the paper", "rank 10", "multiply-adds as run"]
    return markdown_table([*header, "rank 10"], rows)


def gpu() -> list[str]:
    """Return training speeds on a GPU, in eager mode and with CUDA graphs."""
    rows, tasks = [], ("train 50", "train 256", "train 1024")
    for precision in ("float32", "bfloat16"):
        for kind in ("", "_graphs"):
            ratios = ratios_over_sittings(load(f"speed_cuda_{precision}{kind}"))
            for network in ("VGG11", "ResNet18"):
                found = [ratios.get((network, task, "full rank")) for task in tasks]
                cells = [f"{statistics.median(each):.2f}" if each else "" for each in found]
                rows.append([network, f"{precision}{', graphs' if kind else ''}", *cells])
    return markdown_table(["network", "precision", *tasks], rows, left=2)


def map_costs() -> list[str]:
    """Return the quality of the choices of `compute="auto"`, for several values of its constant."""
    rows = []
    for precision in ("float32", "bfloat16"):
        for cost, shares in load(f"layers_cpu_{precision}")["map_costs"].items():
            rows.append([precision, cost, f"{shares['mean']:.3f}", f"{shares['least']:.3f}"])
    return markdown_table(["precision", "constant", "of the best choice, mean", "least"], rows)


def pipelines() -> list[str]:
    """Return images per second of this input pipeline and of other pipelines."""
    rows = [[row["pipeline"], f"{row['images_per_second']:,.0f}"] for row in load("pipeline_cpu")["rows"]]
    return markdown_table(["pipeline", "images per second"], rows)


FUNCTIONS = (
    *(half, kept, balanced, summary, recipes, options, zoo_options, search, search_linearconv),
    *(ablations, pruned, shares, gpu, map_costs, pipelines),
)
TABLES = {function.__name__: function for function in FUNCTIONS}
TABLES |= {
    "counts": lambda: table1_counts.markdown(load("table1_counts")["rows"]),
    "methods": lambda: table2.markdown(load("table2"), every_run()),
    "training_float32": lambda: speed_table(load("speed_cpu_float32")),
    "training_bfloat16": lambda: speed_table(load("speed_cpu_bfloat16")),
    "inference_float32": lambda: speed_table(load("deployment_cpu_float32")),
    "inference_bfloat16": lambda: speed_table(load("deployment_cpu_bfloat16")),
    "fast": lambda: sweep_table.table(fast_rows(), FAST_COLUMNS),  # Base and thinner dense networks, short recipe
    "compression_base": partial(lost, "compression_base"),
    "compression_base_cifar100": partial(lost, "compression_base_cifar100"),
    "compression_vgg11": partial(lost, "compression_vgg11"),
    "tune_lr_base": partial(lost, "tune_lr_base"),
    "tune_lr_vgg11": partial(lost, "tune_lr_vgg11"),
    "compression_speeds": lambda: sizes_and_speeds(
        [run for run in load("compression_vgg11")["runs"] if run["report"].get("way") == "linearconv"]
    ),
    "paper_recipe": partial(sweep, "base_paper_cifar10", "setting parameters accuracy last_ten best against_dense"),
    "paper_recipe_vgg": partial(sweep, "vgg11_paper_cifar10", "setting parameters accuracy last_ten best epochs"),
    "accuracy": partial(sweep, "base_cifar10", "setting parameters accuracy against_dense best"),
    "grey": partial(sweep, "table1_mnist table1_fashion", "dataset setting parameters accuracy best epochs"),
    "hundred": partial(sweep, "table1_cifar100", "setting parameters accuracy against_dense best epochs"),
    "others": partial(sweep, OTHER_NETWORKS, "network setting parameters accuracy against_dense seeds"),
    "precision": partial(sweep, "precision_digits", "setting accuracy seeds"),
}


def fill(text: str) -> str:
    """Return the text of a page with every table and value between marks rewritten."""
    text = TABLE.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text)
    return VALUE.sub(lambda found: found[1] + values()[found[2]] + found[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill(page.read_text()))
