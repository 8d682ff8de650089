"""What every script in models/ shares: command line, run, training loop, checkpoints, counts, report, processes.

    from training import Recipe, main

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250), digits_recipe=Recipe(lr=1e-3, epochs=20))
"""

from training.run import main
from training.settings import Recipe

__all__ = ["Recipe", "main"]
