"""What every script in models/ shares: command line, run, training loop, checkpoints, counts, report, processes.

    from training import Recipe, main

    main({"VGG11": VGG11}, Recipe(lr=1e-3, epochs=250))
"""

from training.options import Recipe
from training.run import main

__all__ = ["Recipe", "main"]
