"""One way to reduce a trained network to one size: convert, then measure at once or tune.

The command of the study, `python -m experiments.compress`, runs this script for every way, size and seed:

    python experiments/compress/unit.py --network models/base_xcnn.py:Base --dense FOLDER --way svd --budget 0.25 \
        --tune 2 --teacher --dataset cifar10 --seed 0 --output FOLDER --resume auto

report.json has the counts and the test accuracy after --tune epochs of `--recipe tune`, 0 for at once. At once it also
has the speed of the deployed network against the deployed dense network.
"""

import copy
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn as nn
from torch import Tensor

from benchmarks.measuring import compare
from dataloaders import BatchLoader, dataloaders
from experiments.compress.ways import WAYS
from experiments.sweep.plan import script_parser
from experiments.thinner import networks_of
from linearconv_convert import ConversionError, balance, deploy, export
from linearconv_convert.batch_norm import refresh_batch_norm
from linearconv_convert.exporting import runner
from linearconv_variants import OneLineParser, non_negative_int, positive_float, positive_share
from training import counting
from training.checkpoints import REPORT, holds_checkpoint, load_newest, open_folder, write_json, write_log
from training.distributed import Group
from training.errors import EXPECTED, report_failure
from training.library import training_images
from training.options import Options, parse_arguments
from training.recipe import TUNE
from training.report import origin
from training.trainer import Trainer

DENSE = "dense"  # a "way": the dense network, trained on
TEACHER = 0.5  # share of the loss that is soft targets
SPEED_IMAGES, SPEED_SECONDS = 8, 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--network", required=True, help="as models/base_xcnn.py:Base")
    add("--dense", type=Path, required=True, help="folder of the trained dense network")
    add("--way", choices=(*WAYS, DENSE), required=True)
    add("--budget", type=positive_share, required=True, help="share of the parameters")
    add("--tune", type=non_negative_int, default=0, help="epochs")
    add("--tune-lr", type=positive_float, default=TUNE.lr, help="learning rate")
    add("--teacher", action="store_true", help="the dense network teaches")
    add("--calibrate", type=non_negative_int, default=1000, help="training images (default: 1000)")
    own, rest = parser.parse_known_args(argv)
    options = parse_arguments(script_parser(own.network.partition(":")[2]), rest)
    try:
        with open_folder(Path(options.output), "auto") as folder:
            study_one(own, options, folder)
    except EXPECTED as error:
        return report_failure(error, "compress")
    return 0


def study_one(own: Namespace, options: Options, folder: Path) -> None:
    """Convert, measure or tune one network, and write its report."""
    script, _, name = own.network.partition(":")
    state, _ = load_newest(own.dense)
    info, *loaders = dataloaders(
        options.dataset,
        options.data_root,
        batch_size=TUNE.batch_size,
        **options.pick("image_size", "download", "device", "seed", "validation", "in_memory", "workers"),
    )
    shape = {"in_channels": info.in_channels, "num_classes": info.num_classes, "width": options.width}
    dense = networks_of(Path(script))[name](**shape).eval()
    dense.load_state_dict(state["model"])
    images = [batch.cpu() for batch in training_images(loaders[0], own.calibrate)]
    small = copy.deepcopy(dense) if own.way == DENSE else WAYS[own.way](dense, own.budget, images)
    refresh_batch_norm(small, images)
    size = (info.in_channels, info.image_size, info.image_size)
    report = {"architecture": name, "type": DENSE, "way": own.way, "budget": own.budget, "alpha": 0.5}
    report |= {"dataset": options.dataset, "seed": options.seed, "amp": options.amp, "num_classes": info.num_classes}
    report |= {"epochs": own.tune, "tune_lr": own.tune_lr, "teacher": own.teacher}
    report |= {**counting.count(small, size), **origin(options.device)}
    recipe = replace(TUNE, epochs=own.tune, lr=own.tune_lr, distill=TEACHER * own.teacher)
    settings = recipe.settings() | options.pick("dataset", "width", "seed", "amp", "validation")
    settings |= {"network": name, "type": DENSE, "way": own.way, "budget": own.budget}
    settings |= {"num_classes": info.num_classes, "in_memory": isinstance(loaders[0], BatchLoader)}
    if own.tune:
        balance(small)
    trainer = Trainer(
        small,
        tuple(loaders),
        recipe,
        settings,
        folder,
        Group(device=options.device),
        teacher=dense if own.teacher else None,
        **options.pick("channels_last", "save_every"),
    )
    if own.tune:
        if holds_checkpoint(folder):
            trainer.load_state(*load_newest(folder))
        report |= trainer.fit().outcome()
    else:
        accuracy = trainer.evaluate()
        report |= {"test_accuracy": accuracy, "best_test_accuracy": accuracy, "best_epoch": 0}
        report["speed"] = speeds(dense, small, size)
        write_log(folder, [])
    write_json(folder / REPORT, report)


def speeds(dense: nn.Module, small: nn.Module, size: tuple[int, int, int]) -> dict[str, float]:
    """Return the deployed network's speed relative to the deployed dense network, on the CPU, by runtime."""
    images = torch.randn(SPEED_IMAGES, *size)
    models = {"dense": deploy(dense.cpu().eval()), "small": deploy(small.cpu().eval())}
    with torch.inference_mode():
        steps = {name: lambda model=model: model(images) for name, model in models.items()}
        found = {"torch": compare(steps, SPEED_SECONDS, "cpu")["small"]["ratio"]}
        try:
            steps = {name: _in_onnxruntime(model, images) for name, model in models.items()}
        except ConversionError as error:  # the packages for ONNX are missing
            print(f"no speed in onnxruntime: {error}")
            return found
        return found | {"onnxruntime": compare(steps, SPEED_SECONDS, "cpu")["small"]["ratio"]}


def _in_onnxruntime(model: nn.Module, images: Tensor):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, path, images)
        run = runner(path)
    return lambda: run(images)


if __name__ == "__main__":
    sys.exit(main())
