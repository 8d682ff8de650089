"""The tables of README and docs/, made from the parser of the scripts and from the files in results/.

python -m docs.tables        # writes all of them anew, each between its marks
"""

import html
import json
import re
import statistics
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed_table, startup
from experiments import paper, real_network
from experiments.compress import table as compress_table
from experiments.results import by_method, comparable, every_run
from experiments.sweep import table as sweep_table
from experiments.table1 import counts as table1_counts
from experiments.table1.accuracy import COLUMNS, compare
from experiments.table2 import __main__ as table2
from experiments.tuning import markdown as tuning_table
from models import resnet_xcnn, zoo_xcnn
from models.vgg_xcnn import VGG11
from training.counting import macs_inference
from training.options import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(r"(<!-- docs/tables\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COMPARED = ("Conv", "-Lr")
IMAGENET = 90 * 1_281_167  # images of the paper's training
COUNTS_OF_ABLATIONS = ("parameters", "nonzero_parameters", "macs_inference")
VARIED = ("type", "alpha", "rank", "reg_weight", "sparsity")  # by ablations
NOT_FOR_TABLES = ("ablation_", "search_")


def load(name: str) -> dict:
    """Return what `results/<name>.json` holds."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def measured(architecture: str) -> dict[str, list[dict]]:
    """Return the reports of a network's trainings on CIFAR-10 with the paper's recipe, by the paper's names of methods.

    Those of one number of epochs, so that they compare: the largest.

    Args:
        architecture: as reports name it, `ResNet18`.
    """
    groups = comparable(run for run in every_run() if not run["file"].startswith(NOT_FOR_TABLES))
    epochs = [key[-1] for key in groups if key[:-1] == (architecture, "cifar10", "paper")]
    runs = by_method(groups[architecture, "cifar10", "paper", max(epochs)]) if epochs else {}
    return {method: [run["report"] for run in same] for method, same in runs.items()}


def summary() -> list[str]:
    """Return README's table: full rank against dense, ours and the paper's."""
    lines = [
        "| network | parameters, M | paper | FLOPs, B | paper | accuracy, % | paper | speed: training / one image |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    counts = {row["network"]: row for row in load("table1_counts")["rows"]}
    speeds = {(row["network"], row["contender"], row["task"]): row for row in load("speed_cpu_float32")["rows"]}
    for name, network in table1_counts.NETWORKS.items():
        rows = counts[name], counts[f"{name}-Lr"]
        keys = ("parameters_ours", "parameters_printed", "flops_ours", "flops_printed")
        cells = [" → ".join(row[key] for row in rows) for key in keys]
        reports = measured(network.__name__)
        if set(COMPARED) <= set(reports):
            means = [statistics.fmean(one["test_accuracy"] for one in reports[setting]) for setting in COMPARED]
            cells.append("{:.1f} → {:.1f} ({} epochs)".format(*means, reports[COMPARED[1]][0]["epochs"]))
        else:
            cells.append("not measured")
        printed = paper.accuracies(name, "cifar10")
        cells.append(f"{printed['Conv']:.1f} → {printed['-Lr']:.1f}")
        tasks = [speeds[name.replace("-", ""), "full rank, auto", task]["ratio"] for task in ("train 50", "infer 1")]
        cells.append("{:.2f} / {:.2f}".format(*tasks))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def options() -> list[str]:
    """Return the options of the training scripts, those of one group below its name."""
    names = ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152")
    parser = make_parser({name: getattr(resnet_xcnn, name) for name in names}, resnet_xcnn.RECIPE)
    lines = ["| option | values | meaning |", "| --- | --- | --- |"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        lines += [f"| **{group.title}** | | |"] * bool(actions) + _rows(actions)
    return lines


def zoo_options() -> list[str]:
    """Return the options that the script for networks of libraries has beside those of all, or with other values."""
    others = make_parser({"": None}, resnet_xcnn.RECIPE)._option_string_actions
    actions = []
    for group in make_parser(zoo_xcnn.Library(), zoo_xcnn.RECIPE)._action_groups:
        for action in group._group_actions:
            other = others.get(action.option_strings[0])
            if other is None or action.required or (action.choices != other.choices and action.dest != "type"):
                actions.append(action)
    return ["| option | values | meaning |", "| --- | --- | --- |", *_rows(actions)]


def _rows(actions):
    """Lines of a table of options."""
    lines = []
    for action in actions:
        called = ", ".join(f"`{name}`" for name in action.option_strings)
        choices = " ".join(f"`{choice}`" for choice in action.choices or ())
        values = choices or action.metavar or ("number" if action.type else "")
        lines.append(f"| {called} | {values} | {html.escape(action.help, quote=False)} |")
    return lines


def paper_recipe() -> list[str]:
    """Return the accuracies of Base on CIFAR-10 with the paper's recipe, brought to its end."""
    columns = ("setting", "parameters", "accuracy", "last_ten", "best", "against_dense")
    return sweep_table.markdown(load("base_paper_cifar10")["runs"], columns)


def accuracy() -> list[str]:
    """Return the accuracies of Base on CIFAR-10 after 16 epochs."""
    columns = ("setting", "parameters", "accuracy", "against_dense", "best")
    return sweep_table.markdown(load("base_cifar10")["runs"], columns)


def search() -> list[str]:
    """Return the validation accuracies that the short recipe is chosen by."""
    lines = ["| settings | validation accuracy |", "| --- | ---: |"]
    runs = [run for name in ("search_optimizer", "search_dense") for run in load(name)["runs"]]
    for run in sorted(runs, key=lambda run: -run["report"]["test_accuracy"]):
        report = run["report"]
        settings = "{optimizer}, lr {lr:g}, weight decay {weight_decay:g}, {schedule}, batch {batch_size}".format(
            **report
        )
        settings += ", label smoothing {label_smoothing:g}, {flip} flip".format(**report)
        settings += f", average {report['average']:g}" if report["average"] else ""
        settings += f", BatchNorm biases {report['bias_lr']:g} times as fast" if report["bias_lr"] != 1 else ""
        lines.append(f"| {settings} | {report['test_accuracy']:.2f} % |")
    return lines


def search_linearconv() -> list[str]:
    """Return the validation accuracies of ways to train LinearConv with the short recipe, over seeds."""
    runs = [run for name in ("search_linearconv", "search_lowrank", "search_30") for run in load(name)["runs"]]
    rows = sorted(sweep_table.over_seeds(runs), key=lambda row: (row["epochs"], -row["accuracy"][0]))
    columns = {"setting": "options", "epochs": "epochs", "parameters": "parameters", "accuracy": "validation accuracy"}
    return sweep_table.table([row | {"setting": f"`{row['setting']}`"} for row in rows], columns | {"seeds": "seeds"})


def fast() -> list[str]:
    """Return the accuracies of Base on CIFAR-10 with the short recipe, beside those of thinner dense networks."""
    columns = {
        key: title for key, title in COLUMNS.items() if key not in ("dataset", "less_paper", "against_less_paper")
    }
    return sweep_table.table(compare(list(every_run(pattern="table1_base_fast")), ["Base"]), columns)


def ablations() -> list[str]:
    """Return the accuracies of Base with one setting varied: the share of primary filters, rank, regulariser, pruning.

    A setting that several ablations have in common stands there once.
    """
    runs = {}
    for name in ("alpha", "rank", "reg", "sparsity"):
        listed = load(f"ablation_{name}")["runs"]
        if name == "rank":  # shares first, each from low to high, in whatever order they were trained
            listed.sort(key=lambda run: (run["report"]["type"] == "lowrank", run["report"]["rank"]))
        for run in listed:
            runs.setdefault(tuple(run["report"][key] for key in VARIED), run)
    columns = ("setting", *COUNTS_OF_ABLATIONS, "accuracy", "against_dense", "correlation")
    return sweep_table.markdown(list(runs.values()), columns)


def grey() -> list[str]:
    """Return the accuracies of Base on grey images."""
    runs = [run for name in ("table1_mnist", "table1_fashion") for run in load(name)["runs"]]
    return sweep_table.markdown(runs, ("dataset", "setting", "parameters", "accuracy", "best", "epochs"))


def hundred() -> list[str]:
    """Return the accuracies of Base on CIFAR-100."""
    columns = ("setting", "parameters", "accuracy", "against_dense", "best", "epochs")
    return sweep_table.markdown(load("table1_cifar100")["runs"], columns)


def others() -> list[str]:
    """Return the accuracies of other networks after a few epochs of the short recipe."""
    runs = [run for name in ("vgg11", "resnet18", "allconv", "squeezenet") for run in load(f"{name}_fast")["runs"]]
    return sweep_table.markdown(runs, ("network", "setting", "parameters", "accuracy", "against_dense", "seeds"))


def pruned() -> list[str]:
    """Return what the two controllers of the sparse variant pruned."""
    lines = [
        "| setting | coefficients pruned | nonzero parameters | test accuracy |",
        "| --- | ---: | ---: | ---: |",
    ]
    for run in load("sparse_controllers")["runs"]:
        report, share = run["report"], f"{100 * run['log'][-1]['pruned']:.1f} %"
        parameters = f"{report['nonzero_parameters']:,} of {report['parameters']:,}"
        lines.append(f"| `{run['setting']}` | {share} | {parameters} | {report['test_accuracy']:.2f} % |")
    return lines


def precision() -> list[str]:
    """Return the accuracies, over seeds, with each precision and memory format."""
    return sweep_table.markdown(load("precision_digits")["runs"], ("setting", "accuracy", "seeds"))


def counts() -> list[str]:
    """Return the parameters and FLOPs of the paper's Table 1, ours and the paper's."""
    return table1_counts.markdown(load("table1_counts")["rows"])


def methods() -> list[str]:
    """Return the tables of LinearConv beside other methods: counts, accuracies, speeds."""
    return table2.markdown(load("table2"), every_run())


def shares() -> list[str]:
    """Return what full rank and rank 10 take away from parameters and add to operations, network by network."""
    lines = [
        "| network | parameters, full rank | rank 10 | FLOPs by the paper | rank 10 | multiply-adds as run | rank 10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = {row["network"]: row for row in load("table1_counts")["rows"]}
    for name in table1_counts.NETWORKS:
        ratios = {
            key: [rows[name + variant][key] / rows[name][key] for variant in ("-Lr", "-LRr")]
            for key in ("parameters", "flops_paper", "macs_inference")
        }
        cells = [f"{100 * (ratio - 1):+.0f} %" for ratio in ratios.pop("parameters")]
        cells += [f"x {ratio:.2f}" for pair in ratios.values() for ratio in pair]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def compression() -> list[str]:
    """Return the accuracies of a trained network made smaller."""
    return compress_table.markdown(load("compress_base"))


def pitches() -> list[str]:
    """Return what is left of a trained pitch tracker made smaller: accuracy, size and speed."""
    return real_network.markdown(load("real_network"))


def tuning() -> list[str]:
    """Return what the first steps from a converted network do, at several learning rates."""
    return tuning_table(load("tune_base"))


def deployment() -> list[str]:
    """Return sizes and speeds of ONNX files; needs onnxruntime."""
    from benchmarks import deployment

    return deployment.markdown(load("deployment_cpu")["rows"])


def conditions() -> list[str]:
    """Return speeds of inference where the size of the images, or the mode of the network, is set anew every time."""
    return speed_table.conditions(load("speed_cpu_float32")["rows"])


def slower() -> list[str]:
    """Return what is slower than the dense network on a CPU."""
    return speed_table.slower({name: load(f"speed_cpu_{name}")["rows"] for name in ("float32", "bfloat16")})


def one_image() -> list[str]:
    """Return speeds of each network's convolutions alone, for one image."""
    precisions, speeds = ("float32", "bfloat16"), {}
    for precision in precisions:
        for row in load(f"layers_cpu_{precision}")["judged"]:
            if (row["task"], row["variant"]) == ("infer 1", "full rank"):
                speeds.setdefault(row["network"], []).append(f"{row['speed_against_dense']:.2f}")
    rows = [f"| {network} | {' | '.join(both)} |" for network, both in speeds.items()]
    return [f"| network | {' | '.join(precisions)} |", "| --- |" + " ---: |" * len(precisions), *rows]


def gpu_float32() -> list[str]:
    """Return speeds on a GPU, in float32 (TF32)."""
    return speed_table.eager_and_captured(*(load(f"speed_cuda_float32{kind}")["rows"] for kind in ("", "_graphs")))


def gpu_bfloat16() -> list[str]:
    """Return speeds on a GPU, in bfloat16."""
    return speed_table.eager_and_captured(*(load(f"speed_cuda_bfloat16{kind}")["rows"] for kind in ("", "_graphs")))


def imagenet() -> list[str]:
    """Return what training on ImageNet would take, going by the multiply-adds of networks; needs torchvision."""
    from torchvision.models import squeezenet1_0, vgg11_bn

    speeds = {
        (row["network"], row["contender"], row["task"]): row for row in load("speed_cuda_bfloat16_graphs")["rows"]
    }
    measured = speeds["VGG11", "full rank, auto", "train 1024"]["images_per_second"]
    streamed = {row["pipeline"]: row["images_per_second"] for row in load("stream_cpu")["rows"]}["ours, streamed"]
    small = macs_inference(VGG11(), (3, 32, 32))
    lines = ["| network | multiply-adds of an image | hours on one GPU | core hours to decode |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for network in (vgg11_bn, squeezenet1_0):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network().eval()(torch.empty(1, 3, 224, 224))
        macs = counter.get_total_flops() // 2
        hours = [IMAGENET / rate / 3600 for rate in (measured * small / macs, streamed)]
        lines.append("| {} | {:.2f} billion | {:.1f} | {:.0f} |".format(network.__name__, macs / 1e9, *hours))
    return lines


def starting() -> list[str]:
    """Return how long scripts take to start."""
    return startup.markdown(load("startup_cpu")["rows"])


TABLES = {
    made.__name__: made
    for made in (
        summary,
        options,
        paper_recipe,
        search,
        search_linearconv,
        fast,
        ablations,
        grey,
        hundred,
        others,
        accuracy,
        pruned,
        precision,
        counts,
        methods,
        shares,
        compression,
        pitches,
        deployment,
        zoo_options,
        tuning,
        conditions,
        slower,
        one_image,
        gpu_float32,
        gpu_bfloat16,
        imagenet,
        starting,
    )
}


def fill(text: str) -> str:
    """Return the text of a page with every table between its marks made anew."""
    text = MARKED.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text)
    return speed_table.into_readme(text, ROOT / "results")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill(page.read_text()))
