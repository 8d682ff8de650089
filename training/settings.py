"""What decides the result of a run: how an architecture is trained, and which network is trained on which images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from linearconv_variants import Variant
from training.errors import UsageError

LR_DROP = 0.1  # factor of the learning rate after a milestone


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained: Adam, cross-entropy, and the regularisers on every 10th batch.

    Args:
        lr: learning rate.
        epochs: passes over the training images.
        batch_size: images in a step of each process.
        milestones: epochs after which the learning rate is multiplied by 0.1.
        reg_weight: weight of the regularisers; 0 is the paper's "-L".
    """

    lr: float
    epochs: int
    batch_size: int = 50
    milestones: tuple[int, ...] = ()
    reg_weight: float = 0.01

    def changed_by(self, options: object) -> "Recipe":
        """Return the recipe with those of its fields that the command line gives (the others are None there)."""
        given = {field.name: getattr(options, field.name) for field in fields(self)}
        recipe = replace(self, **{name: value for name, value in given.items() if value is not None})
        return replace(recipe, milestones=tuple(sorted(recipe.milestones)))

    def lr_after(self, epochs: int) -> float:
        """Return the learning rate that holds after so many epochs."""
        return self.lr * LR_DROP ** sum(milestone <= epochs for milestone in self.milestones)

    def __str__(self) -> str:
        drops = f", x{LR_DROP} after epochs {', '.join(map(str, self.milestones))}" if self.milestones else ""
        return f"Adam, lr {self.lr:g}{drops}, {self.epochs} epochs, batch {self.batch_size}"


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

    def state_dict(self) -> dict[str, object]:
        """Return the settings in one flat dictionary of plain values, as checkpoints hold it.

        Left out is what may change in a run that goes on: how the layers are evaluated, and the number of epochs.
        """
        state = asdict(self)
        state |= state.pop("variant") | state.pop("recipe")
        del state["compute"], state["epochs"]
        return state | {"milestones": list(self.recipe.milestones)}

    def check(self, saved: dict[str, object], path: Path, may_change: Sequence[str] = ()) -> list[str]:
        """Return the names of the settings that differ from those that a checkpoint has saved.

        Args:
            saved: what :meth:`state_dict` returned for that run.
            path: of the checkpoint.
            may_change: settings that may differ.

        Raises:
            UsageError: naming every other setting that differs.
        """
        state = self.state_dict()
        different = [name for name in state if saved.get(name) != state[name]]
        if refused := [name for name in different if name not in may_change]:
            changes = ", ".join(f"{name} {saved.get(name)} there, {state[name]} here" for name in refused)
            raise UsageError(f"{path} is a checkpoint of another run ({changes}): resume with its options")
        return different
