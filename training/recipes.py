"""The recipes to choose from: the architecture's own, which is the paper's, and a short one that was made here."""

from training.settings import Recipe

RECIPES = ("paper", "fast")
FAST = Recipe(  # as far as it has been chosen, on training images that were held out: docs/accuracy.md
    lr=1e-2,
    epochs=30,
    batch_size=125,
    optimizer="adamw",
    schedule="linear",
    warmup=2,
    weight_decay=0.02,
    decay="filters",
    label_smoothing=0.1,
    flip="alternating",
)


def recipe_for(options: object, dataset: str | None, paper: Recipe, digits: Recipe | None = None) -> Recipe:
    """Return the recipe that a command line asks for, with what it changes.

    Args:
        options: of the command line; `options.recipe` is one of `RECIPES`.
        dataset: what is trained on.
        paper: the architecture's.
        digits: the architecture's for the bundled digits, where it has one.
    """
    chosen = FAST if options.recipe == "fast" else digits if digits and dataset == "digits" else paper
    return chosen.changed_by(options)
