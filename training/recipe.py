"""The recipe of a run, which defines the training options, and the comparison of settings with a checkpoint's.

    reg_weight: float = option(0.01, non_negative_float, "weight of the regularisers; 0: none ('-L')", may_change=True)

A new option is one such line in `Recipe`. The parser, --help, the documentation of options, report.json, the comparison
with a checkpoint and --may-change are derived from it.
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from itertools import zip_longest
from pathlib import Path

from linearconv_variants import (
    LINEARCONV_TYPES,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    positive_share,
    share,
)
from training.errors import UsageError

LR_DROP = 0.1  # factor of the learning rate after a milestone


Values = Callable[[str], object] | tuple[str, ...]  # a type for argparse, or the choices


def option(default: object, values: Values, help: str, *, may_change: bool = False, **arguments: object) -> object:
    """Return a dataclass field that is also an option of the command line, where its default is None.

    With `may_change`, --may-change accepts the option; `arguments` are further arguments of `add_argument`.
    """
    kind = {"type": values} if callable(values) else {"choices": values}
    return field(default=default, metadata={"may_change": may_change, "arguments": {"help": help, **kind, **arguments}})


DISTILL = "share of the loss that is soft targets of the network before conversion (default: 0.5); 1: without labels"


@dataclass(frozen=True)
class Recipe:
    """The training settings of a network; the defaults are the paper's (Adam, regularisers every 10th batch)."""

    lr: float = option(MISSING, positive_float, "learning rate", may_change=True)
    epochs: int = option(MISSING, positive_int, "passes over the training images")
    batch_size: int = option(50, positive_int, "images per step of each process", may_change=True)
    milestones: tuple[int, ...] = option(
        (), positive_int, "epochs after which the rate drops to a tenth", nargs="*", metavar="EPOCH", may_change=True
    )
    reg_weight: float = option(0.01, non_negative_float, "weight of the regularisers; 0: none ('-L')", may_change=True)
    optimizer: str = option("adam", ("adam", "adamw", "sgd"), "sgd has Nesterov momentum 0.9")
    schedule: str = option("steps", ("steps", "linear", "cosine"), "steps: drops at milestones; the others end at zero")
    warmup: float = option(0.0, non_negative_float, "epochs in which the learning rate rises", metavar="EPOCHS")
    weight_decay: float = option(0.0, non_negative_float, "weight decay of matrices and filters; decoupled with adamw")
    decay: str = option("parameters", ("parameters", "filters"), "weights that decay")  # filters: optimizers.py
    label_smoothing: float = option(0.0, share, "share of the target that is spread over all classes")
    flip: str = option(  # "alternating": Jordan, "94 % on CIFAR-10 in 3.29 seconds", 2024
        "random", ("random", "alternating"), "flips of training images: at random, or each image in every second epoch"
    )
    average: float = option(0.0, non_negative_float, "epochs over which weights are averaged", metavar="EPOCHS")
    init: str = option("published", str, "initial weights of LinearConv layers")  # the networks have the choices
    dense_epochs: int = option(  # full-rank warm-up; Wang et al., "Pufferfish", MLSys 2021, arXiv 2103.03936
        0, non_negative_int, "train the dense network in the first N epochs, then convert it", metavar="N"
    )
    clip: float = option(0.0, non_negative_float, "largest norm of a step's gradient; 0: no limit", metavar="NORM")
    distill: float = option(0.0, positive_share, DISTILL, nargs="?", const=0.5, metavar="SHARE")
    temperature: float = option(4.0, positive_float, "temperature of the soft targets (default: 4)")

    def changed_by(self, options: object) -> "Recipe":
        """Return the recipe with the options given on a command line; options that were not given are None."""
        given = {setting.name: getattr(options, setting.name) for setting in fields(self)}
        recipe = replace(self, **{name: value for name, value in given.items() if value is not None})
        return replace(recipe, milestones=tuple(sorted(recipe.milestones)))

    def settings(self) -> dict[str, object]:
        """Return the fields that decide the result; drops at milestones do not depend on the number of epochs."""
        settings = vars(self) | {"milestones": list(self.milestones)}
        if self.schedule == "steps":
            del settings["epochs"]
        return settings

    def lr_at(self, epochs: float) -> float:
        """Return the learning rate after a number of epochs, which may be fractional."""
        rising = min(1.0, epochs / self.warmup) if self.warmup else 1.0
        done = max(0.0, epochs - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        if self.schedule == "linear":
            factor = max(0.0, 1 - done)
        elif self.schedule == "cosine":
            factor = (1 + math.cos(math.pi * min(1.0, done))) / 2
        else:
            factor = LR_DROP ** sum(milestone <= epochs for milestone in self.milestones)
        return self.lr * rising * factor

    def __str__(self) -> str:
        drops = f", x{LR_DROP} after epochs {', '.join(map(str, self.milestones))}" if self.milestones else ""
        drops = drops if self.schedule == "steps" else f", {self.schedule} to zero"
        name = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[self.optimizer]
        return f"{name}, lr {self.lr:g}{drops}, {self.epochs} epochs, batch {self.batch_size}"


def add_recipe_options(group: argparse._ArgumentGroup, starts: Sequence[str], without: Sequence[str]) -> None:
    """Add an option for each field of :class:`Recipe`, except `without`; `starts` are the choices of --init."""
    for setting in fields(Recipe):
        if setting.name in without:
            group.set_defaults(**{setting.name: None})
            continue
        arguments = dict(setting.metadata["arguments"])
        if setting.name == "init":
            arguments["choices"] = starts
        group.add_argument(f"--{setting.name.replace('_', '-')}", **arguments)


FAST = Recipe(  # for random weights; chosen on held-out training images: docs/accuracy.md
    lr=1e-2,
    epochs=30,
    batch_size=125,
    optimizer="adamw",
    schedule="linear",
    warmup=2,
    weight_decay=0.02,
    label_smoothing=0.1,
    flip="alternating",
)
# For trained weights: docs/zoo.md. The warm-up protects converted weights in the first steps.
TUNE = Recipe(lr=1e-4, epochs=10, reg_weight=0.0, optimizer="adamw", schedule="cosine", warmup=0.5, weight_decay=0.01)
SHORT = {"fast": FAST, "tune": TUNE}
RECIPES = ("paper", *SHORT)


def recipe_for(options: argparse.Namespace, dataset: str | None, paper: Recipe, digits: Recipe | None = None) -> Recipe:
    """Return the recipe named on the command line, or of the architecture, changed by the given options.

    Raises:
        UsageError: for an option that would have no effect.
    """
    own = digits if digits and dataset == "digits" else paper
    recipe = SHORT.get(options.recipe, own).changed_by(options)
    for name, needs in without_effect(options, recipe, dataset).items():
        value = options.given.get(name)
        if value and value != getattr(Recipe, name, None):  # 0: switched off
            raise UsageError(f"--{name.replace('_', '-')} {value} has no effect here: it needs {needs}")
    return recipe


def without_effect(options: argparse.Namespace, recipe: Recipe, dataset: str | None) -> dict[str, str]:
    """Return the names of the options that have no effect in a run, each with what it needs to have one."""
    variant, budget = options.variant, getattr(options, "budget", None)
    is_fitted = variant.type != "dense" and (recipe.init == "fit" or budget)
    epochs, is_folder, folder = recipe.epochs, dataset == "imagefolder", "--dataset imagefolder"
    is_linearconv, linearconv = variant.type in LINEARCONV_TYPES, "a LinearConv type"
    on_gpus = options.device != "cpu"
    drops = recipe.schedule == "steps" and min(recipe.milestones, default=0) < epochs
    needs = {
        "alpha": (variant.type not in ("dense", "basis"), "a type with primary filters"),
        "pruning": (variant.type == "sparse", "-t sparse"),
        "image_size": (is_folder, folder),
        "workers": (is_folder, folder),
        "in_memory": (is_folder, f"{folder}, as the other sets are always kept in memory"),
        "milestones": (drops, "--schedule steps and more epochs"),
        "reg_weight": (is_linearconv, linearconv),
        "warmup": (recipe.warmup <= epochs, f"at least as many epochs, not {epochs}"),
        "decay": (is_linearconv and recipe.weight_decay, f"{linearconv} and --weight-decay"),
        "average": (recipe.average <= epochs, f"at least as many epochs, not {epochs}"),
        "init": (is_linearconv or recipe.init == "scratch", linearconv),
        "dense_epochs": (is_linearconv and recipe.dense_epochs < epochs, f"{linearconv}, and epochs after it"),
        "distill": (getattr(options, "weights", None), "--weights, which the teacher has"),
        "temperature": (recipe.distill, "--distill"),
        "of": (budget, "--budget"),
        "budget": (variant.type != "dense", "a type to convert to"),
        "calibrate": (is_fitted, "a type to convert to, and --init fit or --budget"),
        "num_classes": (options.count_only or recipe.distill == 1, "--count-only; in training the data decides"),
        "in_channels": (options.count_only, "--count-only; in training the data decides"),
        "resume": (not options.count_only, "a run that trains"),
        "may_change": (options.resume != "never", "--resume"),
        "sync_batch_norm": (on_gpus and os.environ.get("WORLD_SIZE", "1") != "1", "GPUs and several processes"),
    }
    return {name: text for name, (has_effect, text) in needs.items() if not has_effect}


# ---- comparison with a checkpoint -----------------------------------------------------------------------------------


CHANGEABLE = (*(setting.name for setting in fields(Recipe) if setting.metadata["may_change"]), "amp", "processes")


def changed_settings(
    settings: dict[str, object], saved: dict[str, object], path: Path, may_change: Sequence[str] = ()
) -> list[str]:
    """Return the names of the settings of a run that differ from the settings in its checkpoint.

    An option of a recipe that is missing in the checkpoint had its default value.

    Raises:
        UsageError: if a setting differs that is not in `may_change`; the message names all of these.
    """
    saved = {option.name: option.default for option in fields(Recipe)} | saved
    different = [name for name in settings if name in saved and saved[name] != settings[name]]
    if refused := [name for name in different if name not in may_change]:
        changes = ", ".join(_difference(name, saved[name], settings[name]) for name in refused)
        raise UsageError(f"{path} is a checkpoint of another run ({changes}): resume with its options and data")
    return different


def _difference(name, there, here):
    if name == "classes":  # the first one that differs
        pairs = enumerate(zip_longest(there, here, fillvalue="none"))
        name, (there, here) = next((f"class {index}", pair) for index, pair in pairs if pair[0] != pair[1])
    return f"{name} {there} there, {here} here"
