"""A trained network made smaller: accuracy after conversion and after a little training, against what else there is.

    python -m experiments.compress models/base_xcnn.py:Base --name compress_base --epochs 16 --finetune 2 \
        -- --dataset imagefolder --data-root DIR
    python -m experiments.compress --name compress_base --table        # table and plot of the result alone

Train the dense network, convert it to each variant of LinearConv (with and without calibration on training images, and
with a budget that is shared out over the layers), and measure test accuracy right away and after every epoch of
fine-tuning. Against that stand the same LinearConv networks trained from scratch for as long as the dense one, and the
other ways of compress_ways.py to as many parameters (Tucker decomposition where tensorly is installed, channel
pruning where torch-pruning is). Options behind `--` go to the training (models/<script> --help).

Writes results/<name>.json and .png and prints the table. Runs lie in ckpt/<name>/; finished ones are not run again, an
interrupted one goes on from its last epoch.
"""

import importlib
import json
import re
import shlex
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn as nn

from dataloaders import BatchLoader, dataloaders
from experiments.command_line import shown_command, split_arguments
from experiments.compress_table import markdown, plot
from experiments.compress_ways import BUDGETED, CALIBRATED, CONVERSIONS, FROM_SCRATCH, HALF, OTHERS, fit_quality
from linearconv_convert import convert
from linearconv_variants import OneLineParser, Variant, positive_int
from training.checkpoints import holds_checkpoint, open_folder, write_json, write_log
from training.counting import count_parameters
from training.distributed import Group
from training.errors import EXPECTED, report_failure
from training.options import make_parser, parse_arguments
from training.recipe import Recipe, TrainingSettings, recipe_for
from training.report import ROOT, origin
from training.trainer import Trainer

CALIBRATION_BATCHES = 20


class Study:
    """Runs that share a network, data and recipe.

    Args:
        script: models/<arch>_xcnn.py.
        network: its name there.
        folder: for the runs.
        extra: training options, --dataset among them.
    """

    def __init__(self, script: Path, network: str, folder: Path, extra: Sequence[str]) -> None:
        module = importlib.import_module(f"models.{script.stem}")
        self.network, self.folder = getattr(module, network), folder
        recipes = module.RECIPE, module.DIGITS_RECIPE
        self.options = options = parse_arguments(make_parser({network: self.network}, *recipes), extra)
        self.recipe = recipe_for(options, options.dataset, *recipes)
        self.info, *self.loaders = dataloaders(
            options.dataset,
            options.data_root,
            batch_size=self.recipe.batch_size,
            flip=self.recipe.flip,
            **options.pick("image_size", "download", "device", "seed", "channels_last"),
            **options.pick("validation", "in_memory", "workers"),
        )
        self.fresh = self.loaders[0].state_dict()  # every run sees the same batches

    def build(self, conv: Callable[..., nn.Module]) -> nn.Module:
        """Return the network with its initial weights."""
        torch.manual_seed(self.options.seed)
        shape = {"in_channels": self.info.in_channels, "num_classes": self.info.num_classes}
        return self.network(conv=conv, **shape, width=self.options.width)

    def train(self, run: str, model: nn.Module, recipe: Recipe, variant: Variant) -> list[float]:
        """Train a network as far as it is not trained yet.

        Returns:
            Test accuracies in per cent: as given, and after each epoch.
        """
        options, folder = self.options, self.folder / re.sub(r"[^\w.-]", "_", run)
        open_folder(folder, folder, "auto")
        self.loaders[0].load_state_dict(self.fresh)
        settings = TrainingSettings(
            options.network,
            variant,
            recipe,
            options.dataset,
            self.info.num_classes,
            in_memory=isinstance(self.loaders[0], BatchLoader),
            **options.pick("width", "seed", "amp", "validation"),
        )
        group = Group(device=options.device)
        trainer = Trainer(model, self.loaders, settings, folder, group, channels_last=options.channels_last)
        before = folder / "before.json"
        if holds_checkpoint(folder):
            trainer.resume()
        else:
            write_log(folder, [])
            write_json(before, trainer.evaluate())
        if trainer.progress.epoch < recipe.epochs:
            print(f"{run}: {count_parameters(model):,} parameters", flush=True)
        progress = trainer.fit()
        return [json.loads(before.read_text()), *(record["test_accuracy"] for record in progress.history)]


def run(study: Study, epochs: int, finetune: int, record: dict, output: Path) -> None:
    """Do all runs of a study, the result file being written after each.

    Args:
        study: what they share.
        epochs: of the dense network and of those from scratch.
        finetune: epochs after conversion.
        record: takes `rows` and `fit_quality`.
        output: the result file.
    """
    whole = replace(study.recipe, epochs=epochs, milestones=(round(0.75 * epochs), round(0.95 * epochs)))
    tuning = replace(study.recipe, epochs=finetune, milestones=(finetune - 1,), lr=study.recipe.lr / 2)
    plain = Variant("dense")

    def train(kind, method, model, recipe, variant, **more):
        title = f"{method}, {kind}" if kind == "from scratch" else method
        accuracies = study.train(title, model, recipe, variant)
        row = {"method": method, "parameters": count_parameters(model), "accuracies": accuracies, "kind": kind}
        record["rows"].append(row | more)
        write_json(output, record)

    dense = study.build(nn.Conv2d)
    train("from scratch", "dense", dense, whole, plain)
    dense = dense.cpu().eval()
    calibration = [images.cpu() for images, _ in islice(study.loaders[0], CALIBRATION_BATCHES)]
    record["fit_quality"] = fit_quality(dense, convert(dense, "rank"))
    for method, variant in CONVERSIONS.items():
        setting = {name: getattr(variant, name) for name in ("type", "rank", "sparsity", "alpha", "compute")}
        images_of = {method: None} | ({f"{method}, calibrated": calibration} if method in CALIBRATED else {})
        for title, images in images_of.items():
            small, report = convert(dense, **setting, calibration=images, return_report=True)
            errors = [layer.filter_error for layer in report.converted]
            train("converted", title, small, tuning, variant, filter_errors=errors)
    for method in BUDGETED:  # as many parameters, shared out over the layers
        share = count_parameters(study.build(CONVERSIONS[method].conv)) / count_parameters(dense)
        small, report = convert(dense, "rank", budget=share, calibration=calibration, return_report=True)
        filters = {layer.name: layer.variant.alpha for layer in report.converted}
        title = method.replace("alpha", "budget as alpha") + ", calibrated"
        train("converted", title, small, tuning, CONVERSIONS[method], alphas=filters)
    of_half = convert(dense, "rank", alpha=CONVERSIONS[HALF].alpha)
    for method, make in OTHERS.items():
        try:
            train("other", method, make(dense, of_half), tuning, plain)
        except ImportError as error:
            print(f"{method} is left out: {error}")
    for method in FROM_SCRATCH:
        train("from scratch", method, study.build(CONVERSIONS[method].conv), whole, CONVERSIONS[method])


def study_parser(description: str) -> OneLineParser:
    """Return a parser with the options that all studies of one network have."""
    parser = OneLineParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("network", nargs="?", default="", help="a network of models/, as models/base_xcnn.py:Base")
    add("--name", required=True, help="of the result: results/NAME.json")
    add("--note", default="", help="what the data are, kept in the result")
    add("--table", action="store_true", help="run nothing: show the result")
    return parser


def begin_study(parser: OneLineParser, options: Namespace, extra: Sequence[str]) -> tuple[Study, dict]:
    """Return the study that a command line asks for, and a record for its result: where it comes from, without rows.

    Args:
        parser: of :func:`study_parser`.
        options: its options.
        extra: those of training.

    Raises:
        SystemExit: with code 2 after one line on stderr.
    """
    script, _, network = options.network.partition(":")
    if not Path(script).is_file() or not network:
        parser.error(f"{options.network or 'the network'} is not given as models/FILE.py:NAME")
    if "--dataset" not in extra:
        parser.error("give the data behind --, as in -- --dataset cifar10")
    study = Study(Path(script), network, ROOT / "ckpt" / options.name, extra)
    made_by = origin(study.options.device)
    made_by["command"] = shown_command(shlex.split(made_by["command"]), study.options.data_root)
    asked = {key: getattr(options, key) for key in ("note", "network", "epochs")}
    return study, asked | {"amp": study.options.amp, "origin": made_by, "rows": []}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = study_parser(__doc__)
    add = parser.add_argument
    add("--epochs", type=positive_int, default=16, help="of the dense network and from scratch (default: 16)")
    add("--finetune", type=positive_int, default=2, help="epochs after conversion (default: 2)")
    own, extra = split_arguments(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(own)
    output = ROOT / "results" / f"{options.name}.json"
    try:
        if not options.table:
            study, record = begin_study(parser, options, extra)
            run(study, options.epochs, options.finetune, record | {"finetune": options.finetune}, output)
        record = json.loads(output.read_text())
        print("\n".join(markdown(record)))
        drawn = plot(record, output.with_suffix(".png"))
    except EXPECTED as error:
        return report_failure(error, "compress")
    print(f"written: {output.with_suffix('.png')}" if drawn else "no plot: pip install matplotlib")
    return 0


if __name__ == "__main__":
    sys.exit(main())
