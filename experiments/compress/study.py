"""A compression study: runs that share a network, data and recipe, and the order in which they are trained."""

import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn as nn

from dataloaders import BatchLoader, dataloaders
from experiments.compress.methods import BUDGETED, CALIBRATED, CONVERSIONS, FROM_SCRATCH, HALF, OTHERS, fit_quality
from linearconv_convert import convert
from linearconv_variants import Variant
from training.checkpoints import holds_checkpoint, open_folder, write_json, write_log
from training.counting import count_parameters
from training.distributed import Group
from training.options import make_parser, parse_arguments
from training.recipe import Recipe, TrainingSettings, recipe_for
from training.trainer import Trainer

CALIBRATION_BATCHES = 20


class Study:
    """Runs that share a network, data and recipe.

    Args:
        script: path of models/<arch>_xcnn.py.
        network: name of the network in the script.
        folder: folder of the runs.
        extra: training options, including --dataset.
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
        self.fresh = self.loaders[0].state_dict()  # all runs have the same batches

    def build(self, conv: Callable[..., nn.Module]) -> nn.Module:
        """Return the network with its initial weights."""
        torch.manual_seed(self.options.seed)
        shape = {"in_channels": self.info.in_channels, "num_classes": self.info.num_classes}
        return self.network(conv=conv, **shape, width=self.options.width)

    def train(self, run: str, model: nn.Module, recipe: Recipe, variant: Variant) -> list[float]:
        """Train a network, or resume its training.

        Returns:
            Test accuracies in per cent: before training, and after each epoch.
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


class Record:
    """The result of a study, written after each run.

    Args:
        study: the study.
        values: content of the result file; `rows` are added.
        output: path of the result file.
    """

    def __init__(self, study: Study, values: dict, output: Path) -> None:
        self.study, self.values, self.output = study, values, output

    def train(self, kind: str, method: str, model: nn.Module, recipe: Recipe, variant: Variant, **more: object) -> None:
        """Train a network and add its row."""
        title = f"{method}, {kind}" if kind == "from scratch" else method
        accuracies = self.study.train(title, model, recipe, variant)
        row = {"method": method, "parameters": count_parameters(model), "accuracies": accuracies, "kind": kind}
        self.values["rows"].append(row | more)
        write_json(self.output, self.values)


def run(study: Study, epochs: int, finetune: int, values: dict, output: Path) -> None:
    """Execute all runs of a study.

    Args:
        study: the study.
        epochs: epochs of the dense network and of the networks trained from scratch.
        finetune: epochs of fine-tuning after conversion.
        values: content of the result file; `rows` and `fit_quality` are added.
        output: path of the result file, which is written after each run.
    """
    whole = replace(study.recipe, epochs=epochs, milestones=(round(0.75 * epochs), round(0.95 * epochs)))
    tuning = replace(study.recipe, epochs=finetune, milestones=(finetune - 1,), lr=study.recipe.lr / 2)
    plain, record = Variant("dense"), Record(study, values, output)

    dense = study.build(nn.Conv2d)
    record.train("from scratch", "dense", dense, whole, plain)
    dense = dense.cpu().eval()
    calibration = [images.cpu() for images, _ in islice(study.loaders[0], CALIBRATION_BATCHES)]
    values["fit_quality"] = fit_quality(dense, convert(dense, "rank"))
    for method, variant in CONVERSIONS.items():
        setting = {name: getattr(variant, name) for name in ("type", "rank", "sparsity", "alpha", "compute")}
        images_of = {method: None}
        if method in CALIBRATED:
            images_of[f"{method}, calibrated"] = calibration
        for title, images in images_of.items():
            small, report = convert(dense, **setting, calibration=images, return_report=True)
            errors = [layer.filter_error for layer in report.converted]
            record.train("converted", title, small, tuning, variant, filter_errors=errors)
    for method in BUDGETED:  # with equal parameters, distributed over the layers
        share = count_parameters(study.build(CONVERSIONS[method].conv)) / count_parameters(dense)
        small, report = convert(dense, "rank", budget=share, calibration=calibration, return_report=True)
        alphas = {layer.name: layer.variant.alpha for layer in report.converted}
        title = method.replace("alpha", "budget as alpha") + ", calibrated"
        record.train("converted", title, small, tuning, CONVERSIONS[method], alphas=alphas)
    of_half = convert(dense, "rank", alpha=CONVERSIONS[HALF].alpha)
    for method, make in OTHERS.items():
        try:
            record.train("other", method, make(dense, of_half), tuning, plain)
        except ImportError as error:
            print(f"{method} is left out: {error}")
    for method in FROM_SCRATCH:
        record.train("from scratch", method, study.build(CONVERSIONS[method].conv), whole, CONVERSIONS[method])
