"""The recipes to choose from: the architecture's own, which is the paper's, and two that were made here.

fast is short, for weights that are drawn at random; tune is careful, for weights that are trained or converted already.
"""

from training.settings import Recipe

FAST = Recipe(  # as far as it has been chosen, on training images that were held out: docs/accuracy.md
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
TUNE = Recipe(  # its rate as docs/zoo.md has it, its warm-up what keeps the first steps from undoing a conversion
    lr=1e-4,
    epochs=10,
    batch_size=50,
    reg_weight=0.0,
    optimizer="adamw",
    schedule="cosine",
    warmup=0.5,
    weight_decay=0.01,
)
SHORT = {"fast": FAST, "tune": TUNE}
RECIPES = ("paper", *SHORT)


def recipe_for(options: object, dataset: str | None, paper: Recipe, digits: Recipe | None = None) -> Recipe:
    """Return the recipe that a command line asks for, with what it changes.

    Args:
        options: of the command line; `options.recipe` is one of `RECIPES`.
        dataset: what is trained on.
        paper: the architecture's.
        digits: the architecture's for the bundled digits, where it has one.
    """
    own = digits if digits and dataset == "digits" else paper
    return SHORT.get(options.recipe, own).changed_by(options)
