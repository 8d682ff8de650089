"""How high a learning rate may be where training goes on from a converted network: what its first steps do to it.

    python -m experiments.tuning models/base_xcnn.py:Base --name tune_base --epochs 10 \
        -- --dataset imagefolder --data-root DIR
    python -m experiments.tuning --name tune_base --table        # the table of the result alone

Train the dense network by the fast recipe, convert it to full rank with alpha 0.5 on training images, and tune that for
two epochs at several learning rates: with Adam at a constant rate, and by the recipe `tune`, without clipping and with.
Test loss and accuracy are measured after the first, the tenth and the hundredth step and at the end. Options behind
`--` go to the training (models/<script> --help).

Writes results/<name>.json and prints the table.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from experiments.command_line import split_arguments
from experiments.compress import CALIBRATION_BATCHES, Study, begin_study, study_parser
from linearconv_convert import convert
from linearconv_variants import Variant, positive_float, positive_int
from training.checkpoints import open_folder, write_json, write_log
from training.distributed import Group
from training.errors import EXPECTED, report_failure
from training.recipe import FAST, TUNE, Recipe, TrainingSettings
from training.report import ROOT
from training.trainer import Trainer

STEPS = (1, 10, 100)
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
WAYS = {
    "Adam, constant": replace(TUNE, optimizer="adam", schedule="steps", warmup=0.0, weight_decay=0.0),
    "tune": TUNE,
    "tune, --clip 1": replace(TUNE, clip=1.0),
}


class Watched(Trainer):
    """A trainer that evaluates the network after some of its steps.

    Args:
        as for :class:`Trainer`.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.points = {}  # {step: [test loss, test accuracy]}

    def _train_step(self, images, labels):
        super()._train_step(images, labels)
        if self.progress.step in STEPS:
            self.points[self.progress.step] = measure(self.model, self.test_loader)
            self.model.train()


@torch.no_grad()
def measure(model: nn.Module, loader: object) -> list[float]:
    """Return the mean cross-entropy over a loader's images, and the accuracy in per cent."""
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    return [loss / loader.num_images, 100 * correct / loader.num_images]


def tune(study: Study, model: nn.Module, recipe: Recipe, folder: Path) -> list[list[float]]:
    """Tune a network; return `measure` of it after each of `STEPS` that there are, and at the end."""
    study.loaders[0].load_state_dict(study.fresh)
    options = study.options
    settings = TrainingSettings(options.network, Variant("rank"), recipe, options.dataset, study.info.num_classes)
    open_folder(folder, folder, "auto")
    write_log(folder, [])
    trainer = Watched(model, study.loaders, settings, folder, Group(device=options.device))
    trainer.fit()
    return [*trainer.points.values(), measure(trainer.model, study.loaders[1])]


def run(study: Study, epochs: int, tuned: int, rates: Sequence[float], record: dict, output: Path) -> None:
    """Do all runs of a study, the result file being written after each.

    Args:
        study: network, data, options.
        epochs: of the dense network.
        tuned: of each run from the converted one.
        rates: learning rates.
        record: takes `dense`, `converted` and `rows`.
        output: the result file.
    """
    dense = study.build(nn.Conv2d)
    study.train("dense", dense, replace(FAST, epochs=epochs, batch_size=study.recipe.batch_size), Variant("dense"))
    dense = dense.eval()
    images = [batch for batch, _ in islice(study.loaders[0], CALIBRATION_BATCHES)]
    small = convert(dense, "rank", calibration=images)
    record["dense"], record["converted"] = (measure(model, study.loaders[1]) for model in (dense, small))
    for way, recipe in WAYS.items():
        for rate in rates:
            recipe = replace(recipe, lr=rate, epochs=tuned, batch_size=study.recipe.batch_size)
            again = convert(dense, "rank", calibration=images)
            points = tune(study, again, recipe, study.folder / f"{way}-{rate:g}".replace(" ", "_"))
            record["rows"].append({"way": way, "lr": rate, "points": points})
            write_json(output, record)


def markdown(record: dict) -> list[str]:
    """Return the table of a result: test loss, and accuracy at the end, of every way and learning rate."""
    shown = [f"after {step}" for step in STEPS[: len(record["rows"][0]["points"]) - 1]]
    lines = [f"| way | learning rate | loss {' | '.join(shown)} | at the end | accuracy |"]
    lines.append("| --- | ---: |" + " ---: |" * (len(shown) + 2))
    start = [f"{record[name][0]:.3f}" for name in ("converted", "dense")]
    lines.append(f"| converted |  | {' | '.join([start[0]] * (len(shown) + 1))} | {record['converted'][1]:.2f} % |")
    for row in record["rows"]:
        losses = " | ".join(f"{loss:.3f}" for loss, _ in row["points"])
        lines.append(f"| {row['way']} | {row['lr']:g} | {losses} | {row['points'][-1][1]:.2f} % |")
    return [*lines, f"| dense |  | {' | '.join([''] * len(shown))} | {start[1]} | {record['dense'][1]:.2f} % |"]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = study_parser(__doc__)
    add = parser.add_argument
    add("--epochs", type=positive_int, default=10, help="of the dense network (default: 10)")
    add("--tune", type=positive_int, default=2, metavar="EPOCHS", help="after conversion (default: 2)")
    add("--rates", type=positive_float, nargs="+", default=RATES, help="learning rates")
    own, extra = split_arguments(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(own)
    output = ROOT / "results" / f"{options.name}.json"
    try:
        if not options.table:
            study, record = begin_study(parser, options, extra)
            run(study, options.epochs, options.tune, options.rates, record, output)
        print("\n".join(markdown(json.loads(output.read_text()))))
    except EXPECTED as error:
        return report_failure(error, "tuning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
