"""What every script in models/ shares: command line, run, training loop, checkpoints, counts, report, processes.

A script holds its network and how it is trained, and ends with `main({"VGG11": VGG11}, RECIPE, DIGITS_RECIPE)`.
"""

from training.recipe import Recipe
from training.run import main

__all__ = ["Recipe", "main"]
