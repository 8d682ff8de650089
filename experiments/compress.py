"""A trained network made smaller: accuracy after conversion and after a little training, against what else there is.

    python experiments/compress.py models/base_xcnn.py:Base --name compress_base --epochs 16 --finetune 2 \
        -- --dataset imagefolder --data-root DIR

Trains the dense network, converts it to each variant of LinearConv (with and without calibration on training images),
and measures test accuracy right away and after every epoch of fine-tuning. Against that stand the same LinearConv
networks trained from scratch for as long as the dense one, and other ways to the same number of parameters: the
truncated SVD as two convolutions, Tucker decomposition (where tensorly-torch is installed) and uniform channel pruning
by magnitude (where torch-pruning is installed). Options behind `--` go to the training (models/<script> --help).

Writes results/<name>.json and .png and prints the table. Runs lie in ckpt/<name>/; finished ones are not run again, an
interrupted one goes on from its last epoch.
"""

import argparse
import copy
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

import torch
import torch.nn as nn

from benchmarks.measuring import origin
from dataloaders import dataloaders
from linearconv import LinearConv
from linearconv_convert import convert
from linearconv_convert.surgery import layers_of, replace
from training.checkpoints import PATTERN, open_folder, write_json
from training.counting import count_parameters
from training.options import apply_recipe, conv_factory, parse_arguments
from training.trainer import Trainer

CALIBRATION_BATCHES = 20
HALF = "full rank, alpha 0.5"  # the other ways get as many parameters as this one
CONVERSIONS = {
    "full rank, alpha 0.25": ("-t", "rank", "--alpha", "0.25"),
    HALF: ("-t", "rank"),
    "full rank, alpha 0.75": ("-t", "rank", "--alpha", "0.75"),
    "half rank": ("-t", "rank", "-r", "0.5"),
    "rank 10": ("-t", "lowrank"),
    "rank 10, alpha 0.75": ("-t", "lowrank", "--alpha", "0.75"),
    "half of A pruned": ("-t", "sparse", "-s", "0.5"),
}
FROM_SCRATCH = (HALF, "rank 10", "half of A pruned")
CALIBRATED = (HALF, "full rank, alpha 0.25", "rank 10")


class Study:
    """Runs that share a network, data and recipe.

    Args:
        spec (str): models/<arch>_xcnn.py:<network>.
        name (str): of the study; its runs lie in ckpt/<name>.
        extra (list[str]): training options.
    """

    def __init__(self, spec, name, extra):
        script, _, network = spec.partition(":")
        module = importlib.import_module(f"models.{Path(script).stem}")
        self.network, self.recipe = getattr(module, network), module.RECIPE
        self.extra, self.folder = extra, ROOT / "ckpt" / name
        self.options = options = self.parse([])
        self.info, *self.loaders = dataloaders(
            options.dataset,
            options.data_root,
            batch_size=options.batch_size,
            image_size=options.image_size,
            device=options.device,
            seed=options.seed,
            channels_last=options.channels_last,
        )
        self.fresh = self.loaders[0].state_dict()  # every run sees the same batches

    def parse(self, arguments):
        options = parse_arguments({self.network.__name__: self.network}, self.recipe, [*arguments, *self.extra])
        return apply_recipe(options, self.recipe.for_dataset(options.dataset))

    def build(self, conv):
        torch.manual_seed(self.options.seed)
        return self.network(conv=conv, in_channels=self.info.in_channels, num_classes=self.info.num_classes,
                            width=self.options.width)  # fmt: skip

    def train(self, run, model, epochs, **changes):
        """Train a network as far as it is not trained yet; returns its test accuracies: as given, after each epoch."""
        options = self.parse(["--epochs", str(epochs)])
        vars(options).update(changes)
        folder = self.folder / "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in run)
        started = any(folder.glob(PATTERN))
        open_folder(folder, None, started)
        self.loaders[0].load_state_dict(self.fresh)
        trainer = Trainer(model, self.loaders, options, folder, options.dataset, self.info.num_classes)
        before = folder / "before.json"
        if not started:
            write_json(before, trainer.evaluate())
        if started:
            trainer.resume()
        if trainer.epoch < epochs:
            print(f"{run}: {count_parameters(model):,} parameters", flush=True)
        trainer.fit()
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [json.loads(before.read_text()), *(entry["test_accuracy"] for entry in log)]


# ---- other ways ---------------------------------------------------------------------------------------------------


def truncated_svd(dense, small):
    """Each layer that is a LinearConv in `small` as two convolutions, to r and by 1x1 to F channels, of as many
    parameters: r (K + F) of P K + (F - P) P."""
    model, replacements = copy.deepcopy(dense), {}
    for name, ours in layers_of(small, LinearConv).items():
        layer = model.get_submodule(name)
        weight = layer.weight.detach()
        filters, size = len(weight), weight[0].numel()
        rank = max(1, _weights(ours) // (filters + size))
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        arguments = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        first = nn.Conv2d(layer.in_channels, rank, *arguments, bias=False)
        second = nn.Conv2d(rank, filters, 1, bias=layer.bias is not None)
        with torch.no_grad():
            first.weight.copy_((values[:rank, None].sqrt() * right[:rank]).view_as(first.weight))
            second.weight.copy_((left[:, :rank] * values[:rank].sqrt())[:, :, None, None])
            if layer.bias is not None:
                second.bias.copy_(layer.bias)
        replacements[layer] = nn.Sequential(first, second)
    return replace(model, replacements)


def tucker(dense, small):
    """Each such layer as tensorly-torch's Tucker convolution of the share of parameters that it has in `small`."""
    from tltorch import FactorizedConv

    model, replacements = copy.deepcopy(dense), {}
    for name, ours in layers_of(small, LinearConv).items():
        layer = model.get_submodule(name)
        share = _weights(ours) / layer.weight.numel()
        replacements[layer] = FactorizedConv.from_conv(layer, rank=share, factorization="tucker")
    return replace(model, replacements)


def _weights(layer):
    return sum(parameter.numel() for name, parameter in layer.named_parameters() if name != "bias")


def channel_pruning(dense, small):
    """The share of channels that leaves as many parameters, least L1 norms first, by torch-pruning."""
    import torch_pruning

    wanted = count_parameters(small)
    example = torch.randn(1, 3, 32, 32)
    low, high = 0.0, 0.95
    for _ in range(12):
        ratio = (low + high) / 2
        model = copy.deepcopy(dense)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        importance = torch_pruning.importance.MagnitudeImportance(p=1)
        torch_pruning.pruner.MagnitudePruner(
            model, example, importance=importance, pruning_ratio=ratio, ignored_layers=last
        ).step()
        low, high = (ratio, high) if count_parameters(model) > wanted else (low, ratio)
    return model


OTHERS = {"SVD as two convolutions": truncated_svd, "Tucker": tucker, "uniform channel pruning": channel_pruning}


# ---- how good the fits are ----------------------------------------------------------------------------------------


def fit_quality(dense, small):
    """Relative error of each layer's filters: fitted, of the best matrix of rank P (Eckart-Young), and of keeping the
    first P filters and regressing the others on them."""
    rows = []
    for name, ours in layers_of(small, LinearConv).items():
        filters = dense.get_submodule(name).weight.detach().flatten(1).double()
        primary, norm = ours.primary_channels, filters.norm()
        first, others = filters[:primary], filters[primary:]
        left_over = others - torch.linalg.lstsq(first.T, others.T).solution.T @ first
        rows.append({
            "layer": name,
            "fitted": ((ours.weight.detach().flatten(1).double() - filters).norm() / norm).item(),
            "optimum": (torch.linalg.svdvals(filters)[primary:].norm() / norm).item(),
            "first_filters": (left_over.norm() / norm).item(),
            "largest_coefficient": ours.linear_weights.detach().abs().max().item(),
        })  # fmt: skip
    return rows


# ---- the study ----------------------------------------------------------------------------------------------------


def run(study, epochs, finetune, record, output):
    """All runs; the result file is written after each."""
    recipe = {"lr": study.options.lr, "milestones": [round(0.75 * epochs), round(0.95 * epochs)]}
    tuning = {"lr": study.options.lr / 2, "milestones": [finetune - 1]}
    rows = record["rows"]

    def note(method, model, accuracies, **more):
        rows.append({"method": method, "parameters": count_parameters(model), "accuracies": accuracies, **more})
        write_json(output, record)

    dense = study.build(nn.Conv2d)
    accuracies = study.train("dense", dense, epochs, **recipe)
    note("dense", dense, accuracies, kind="from scratch")
    dense = dense.cpu().eval()
    calibration = [images for images, _ in zip(study.loaders[0], range(CALIBRATION_BATCHES), strict=False)]
    record["fit_quality"] = fit_quality(dense, convert(dense, "rank"))
    models = {}
    for method, arguments in CONVERSIONS.items():
        options = study.parse(arguments)
        setting = {"type": options.type, "rank": options.rank, "sparsity": options.sparsity, "alpha": options.alpha}
        models[method] = convert(dense, **setting)
        convertible = {method: None} | ({f"{method}, calibrated": calibration} if method in CALIBRATED else {})
        for title, images in convertible.items():
            small, report = convert(dense, **setting, calibration=images, return_report=True)
            errors = [layer.filter_error for layer in report.converted]
            accuracies = study.train(title, small, finetune, **tuning)
            note(title, small, accuracies, kind="converted", filter_errors=errors)
    for method, make in OTHERS.items():
        try:
            other = make(dense, models[HALF])
        except ImportError as error:
            print(f"{method} is left out: {error}")
            continue
        note(method, other, study.train(method, other, finetune, **tuning), kind="other")
    for method in FROM_SCRATCH:
        small = study.build(conv_factory(study.parse(CONVERSIONS[method])))
        accuracies = study.train(f"{method}, from scratch", small, epochs, **recipe)
        note(method, small, accuracies, kind="from scratch")


def markdown(record):
    """A row per way: parameters and accuracy as converted, after 1 and all epochs of fine-tuning, or from scratch."""
    tuned = record["finetune"]
    lines = [
        f"| way | parameters | converted | after 1 epoch | after {tuned} | from scratch, {record['epochs']} epochs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    scratch = {row["method"]: row for row in record["rows"] if row["kind"] == "from scratch"}
    for row in record["rows"]:
        if row["kind"] != "from scratch":
            cells = [row["accuracies"][0], row["accuracies"][1], row["accuracies"][tuned]]
            cells.append(scratch[row["method"]]["accuracies"][-1] if row["method"] in scratch else None)
        elif row["method"] == "dense":
            cells = [None, None, None, row["accuracies"][-1]]
        else:
            continue
        shown = ["" if cell is None else f"{cell:.2f} %" for cell in cells]
        lines.append(f"| {row['method']} | {row['parameters']:,} | {' | '.join(shown)} |")
    return lines


def plot(record, path):
    """Accuracy against parameters: converted, after one epoch, after all of fine-tuning, and from scratch."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    for kind, marker in (("converted", "o"), ("other", "s")):
        rows = [row for row in record["rows"] if row["kind"] == kind]
        for epoch, color in ((0, "tab:red"), (1, "tab:orange"), (record["finetune"], "tab:green")):
            what = "as it is" if epoch == 0 else f"after {epoch} epoch{'s' if epoch > 1 else ''}"
            axes.plot(
                [row["parameters"] for row in rows],
                [row["accuracies"][epoch] for row in rows],
                marker,
                color=color,
                label=f"{'LinearConv' if kind == 'converted' else 'other ways'}, {what}",
                fillstyle="full" if kind == "converted" else "none",
            )
    scratch = [row for row in record["rows"] if row["kind"] == "from scratch"]
    axes.plot([row["parameters"] for row in scratch], [row["accuracies"][-1] for row in scratch], "k*",
              label=f"from scratch, {record['epochs']} epochs (right: dense)")  # fmt: skip
    axes.set(xlabel="parameters", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a network of models/, as models/base_xcnn.py:Base")
    parser.add_argument("--name", required=True, help="of the result: results/NAME.json")
    parser.add_argument("--epochs", type=int, default=16, help="of the dense network and from scratch (default: 16)")
    parser.add_argument("--finetune", type=int, default=2, help="epochs after conversion (default: 2)")
    parser.add_argument("--note", default="", help="what the data are, kept in the result")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the table and draw the plot again")
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, extra = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if not Path(options.network.partition(":")[0]).is_file() or ":" not in options.network:
        parser.error(f"{options.network} is not models/FILE.py:NAME")
    output = ROOT / "results" / f"{options.name}.json"
    if options.show:
        record = json.loads(output.read_text())
    else:
        if "--dataset" not in extra:
            parser.error("give the data behind --, as in -- --dataset cifar10")
        study = Study(options.network, options.name, extra)
        options.device = study.options.device
        record = {"note": options.note, "network": options.network, "epochs": options.epochs,
                  "finetune": options.finetune, "amp": study.options.amp, "rows": []}  # fmt: skip
        asked = f"{options.network} --name {options.name} --epochs {options.epochs} --finetune {options.finetune}"
        record["origin"] = origin(options) | {"command": f"python experiments/compress.py {asked}"}
        run(study, options.epochs, options.finetune, record, output)
    print("\n".join(markdown(record)))
    plot(record, output.with_suffix(".png"))
    print(f"written: {output.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
