"""What decides the result of a run: how an architecture is trained, and which network is trained on which images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from linearconv_variants import Variant
from training.errors import UsageError

LR_DROP = 0.1  # factor of the learning rate after a milestone
OPTIMIZERS = ("adam", "adamw", "sgd")  # sgd: with Nesterov momentum 0.9
SCHEDULES = ("steps", "linear", "cosine")  # of the learning rate: drops at milestones, or down to zero
DECAYS = ("parameters", "filters")
FLIPS = ("random", "alternating")
STEMS = ("linearconv", "dense")
CHOICES = {  # of the recipe's words
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "decay": DECAYS,
    "flip": FLIPS,
    "stem": STEMS,
}


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained. The defaults are the paper's: Adam, cross-entropy, regularisers every 10th batch.

    Args:
        lr: learning rate.
        epochs: passes over the training images.
        batch_size: images in a step of each process.
        milestones: epochs after which the learning rate is multiplied by 0.1.
        reg_weight: weight of the regularisers; 0 is the paper's "-L".
        optimizer: one of `OPTIMIZERS`.
        schedule: one of `SCHEDULES`; only "steps" heeds the milestones.
        warmup: epochs in which the learning rate rises to its full value.
        weight_decay: of matrices and filters, not of biases and norms; decoupled from the gradient with adamw, and
            multiplied by the learning rate.
        decay: what it is applied to in LinearConv layers: the "parameters", or the "filters" made of them, 1/2
            weight_decay |W|^2 (Frobenius decay; Khodak et al., ICLR 2021).
        label_smoothing: share of the target that all classes have together.
        flip: of training images that may be flipped: at "random", or "alternating": at random in the first epoch, then
            each image the other way round in every next one (Jordan, "94 % on CIFAR-10 in 3.29 seconds", 2024).
        bias_lr: learning rate of BatchNorm biases, as a multiple.
        coefficient_lr: learning rate of what makes up A in LinearConv, as a multiple.
        average: epochs over which weights are averaged, exponentially, for evaluation; 0: the weights themselves.
        init: how LinearConv layers start, one of `linearconv_convert.weights.STARTS`; of a converted network "fit" or
            "scratch", see converted.py.
        stem: what convolves the images themselves: the variant, or nn.Conv2d whatever the variant is.
        dense_epochs: epochs in which the dense network is trained first, to be converted then (full-rank warm-up; Wang
            et al., "Pufferfish", MLSys 2021, arXiv 2103.03936).
        clip: largest norm of a step's gradient, which is scaled down to it; 0: any.
        distill: weight of a teacher's soft targets in the loss, the labels having the rest, see objective.py.
        temperature: of the soft targets.
    """

    lr: float
    epochs: int
    batch_size: int = 50
    milestones: tuple[int, ...] = ()
    reg_weight: float = 0.01
    optimizer: str = "adam"
    schedule: str = "steps"
    warmup: float = 0.0
    weight_decay: float = 0.0
    decay: str = "parameters"
    label_smoothing: float = 0.0
    flip: str = "random"
    bias_lr: float = 1.0
    coefficient_lr: float = 1.0
    average: float = 0.0
    init: str = "published"
    stem: str = "linearconv"
    dense_epochs: int = 0
    clip: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0

    def changed_by(self, options: object) -> "Recipe":
        """Return the recipe with those of its fields that the command line gives (the others are None there)."""
        given = {field.name: getattr(options, field.name) for field in fields(self)}
        recipe = replace(self, **{name: value for name, value in given.items() if value is not None})
        return replace(recipe, milestones=tuple(sorted(recipe.milestones)))

    def lr_at(self, epochs: float) -> float:
        """Return the learning rate after so many epochs, whole or not."""
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


@dataclass(frozen=True)
class TrainingSettings:
    """What a checkpoint says of the run that it is of, so that it is resumed with the same settings only."""

    network: str
    variant: Variant
    recipe: Recipe
    dataset: str
    num_classes: int
    width: float = 1.0
    seed: int = 0
    amp: bool = False
    processes: int = 1
    validation: int = 0
    in_memory: bool = True  # streamed images are augmented otherwise
    of_network: dict[str, object] = field(default_factory=dict)  # what else decides, of networks with options of theirs

    def state_dict(self) -> dict[str, object]:
        """Return the settings in one flat dictionary of plain values, as checkpoints hold it.

        Left out is what may change in a run that goes on: how the layers are evaluated, and the number of epochs where
        the learning rate does not depend on it.
        """
        state = asdict(self)
        state |= state.pop("variant") | state.pop("recipe")
        state |= state.pop("of_network")
        del state["compute"]
        if self.recipe.schedule == "steps":
            del state["epochs"]
        return state | {"milestones": list(self.recipe.milestones)}

    def check(self, saved: dict[str, object], path: Path, may_change: Sequence[str] = ()) -> list[str]:
        """Return the names of the settings that differ from those that a checkpoint has saved.

        A setting that the checkpoint does not know was at its default.

        Args:
            saved: what :meth:`state_dict` returned for that run.
            path: of the checkpoint.
            may_change: settings that may differ.

        Raises:
            UsageError: naming every other setting that differs.
        """
        defaults = {field.name: field.default for kind in (Recipe, TrainingSettings) for field in fields(kind)}
        state, saved = self.state_dict(), defaults | saved
        different = [name for name in state if saved.get(name) != state[name]]
        if refused := [name for name in different if name not in may_change]:
            changes = ", ".join(f"{name} {saved.get(name)} there, {state[name]} here" for name in refused)
            raise UsageError(f"{path} is a checkpoint of another run ({changes}): resume with its options")
        return different
