"""Code that all scripts in models/ share: command line, run, training loop, checkpoints, counts, report, processes.

A script defines its network and its recipes, and ends with `main({"VGG11": VGG11}, RECIPE, DIGITS_RECIPE)`.
"""

from training.recipe import Recipe
from training.run import main

__all__ = ["Recipe", "main"]
