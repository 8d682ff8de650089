"""The command line that all training scripts share: options, their defaults, and the checks that need no data.

    python models/<arch>_xcnn.py -t TYPE [-r RANK] [-s SPARSITY] [options]

Whatever is wrong ends the script with one line on stderr and exit code 2.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from dataloaders import DATASETS
from linearconv import COMPUTE_MODES
from linearconv_sparse import SCHEDULES
from linearconv_variants import LINEARCONV_TYPES, Variant

CHANGEABLE = ("lr", "milestones", "batch_size", "reg_weight", "amp", "processes")
TYPES = (*LINEARCONV_TYPES, "dense")


class UsageError(Exception):
    """What the user asked for cannot be done; str() is one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained: Adam, cross-entropy, and the regulariser on every 10th batch.

    `digits` is the recipe for the 1,438 images of the bundled digits, for which the published one is not made.
    """

    lr: float
    epochs: int
    batch_size: int = 50
    milestones: tuple[int, ...] = ()  # epochs after which the learning rate is multiplied by 0.1
    reg_weight: float = 0.01
    digits: "Recipe | None" = None

    def for_dataset(self, dataset):
        return self.digits if dataset == "digits" and self.digits else self


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        sys.exit(fail(f"{message} (--help lists the options)", self.prog))


def fail(message, program="error"):
    """Print one line on stderr and return 2, the exit code of bad input."""
    print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


# ---- the options --------------------------------------------------------------------------------------------------


def parse_arguments(networks, recipe, argv=None):
    """Parse and check the command line.

    Args:
        networks (dict[str, callable]): network constructors by name; the first is the default.
        recipe (Recipe): where the training options have their defaults.
        argv (list[str], optional): arguments; those of the process where left out.

    Returns:
        argparse.Namespace: training options that were not given are None until :func:`apply_recipe`.

    Raises:
        SystemExit: with code 2 after one line on stderr.
    """
    parser = OneLineParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=_overview(recipe))
    add = parser.add_argument_group("network").add_argument
    add("-t", "--type", choices=TYPES, default="rank",
        help="rank: LinearConv, A of rank -r as a share (1: vanilla full rank); lowrank: constant rank -r; "
             "sparse: A pruned to -s; dense: the plain network (default: rank)")  # fmt: skip
    add("-r", "--rank", type=float, help="share in (0, 1] for rank (default 1), integer for lowrank (default 10)")
    add("-s", "--sparsity", type=float, help="share of coefficients to prune, 0 <= s < 1 (default 0.25)")
    add("--alpha", type=float, default=0.5, help="share of primary filters, in (0, 1] (default: 0.5)")
    add("--pruning", choices=SCHEDULES, default="gradual", help="controller of the sparse type (default: gradual)")
    add("--compute", choices=COMPUTE_MODES, default="auto", help="how LinearConv is evaluated (default: auto)")
    add("--width", type=float, default=1.0, help="multiplies every channel count (default: 1)")
    add("--network", choices=tuple(networks), default=next(iter(networks)),
        help="which network of this family (default: the first)")  # fmt: skip

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS,
        help="default: cifar10 where it is there or can be downloaded, else digits (bundled)")  # fmt: skip
    add("--data-root", default="dataset", metavar="DIR", help="where data sets lie (default: dataset)")
    add("--no-download", dest="download", action="store_false", help="use only what lies in --data-root")
    add("--image-size", type=positive_int, default=32, help="imagefolder only: side in pixels (default: 32)")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int, help="default: the recipe's")
    add("--batch-size", type=positive_int, help="of each process; default: the recipe's")
    add("--lr", type=positive_float, help="learning rate of Adam; default: the recipe's")
    add("--milestones", type=positive_int, nargs="*", metavar="EPOCH",
        help="epochs after which the learning rate is multiplied by 0.1; default: the recipe's")  # fmt: skip
    add("--reg-weight", type=non_negative_float,
        help="weight of the regularisers, every 10th batch; 0 is the paper's '-L'; default: the recipe's")  # fmt: skip
    add("--seed", type=int, default=0, help="of initialisation, shuffling and augmentation (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:N (default: cuda where there is one)")  # fmt: skip
    add("--channels-last", action=argparse.BooleanOptionalAction, default=True,
        help="memory format of images and feature maps (default: on)")  # fmt: skip
    add("--amp", action=argparse.BooleanOptionalAction,
        help="bfloat16 autocast (default: on for CPUs that compute in bfloat16, elsewhere off)")  # fmt: skip
    add("--sync-batch-norm", action="store_true",
        help="with several processes on GPUs: BatchNorm over the batch of all of them")  # fmt: skip
    add("--deterministic", action="store_true",
        help="only deterministic operations: on a GPU too, a resumed run equals the unbroken one (slower)")  # fmt: skip
    add("--compile", action=argparse.BooleanOptionalAction, default=False,
        help="torch.compile the network (default: off; slower on a CPU)")  # fmt: skip

    add = parser.add_argument_group("what is done and kept").add_argument
    add("--count-only", action="store_true", help="print parameters and FLOPs and stop; no data is read")
    add("--num-classes", type=positive_int, help="for --count-only; otherwise the data decides (default: 10)")
    add("--in-channels", type=positive_int, help="for --count-only; otherwise the data decides (default: 3)")
    add("--output", metavar="DIR",
        help="for report.json, log.jsonl, checkpoints (default: ckpt/<script>/<run name>)")  # fmt: skip
    add("--resume", action="store_true", help="go on from the newest good checkpoint in the output folder")
    add("--may-change", nargs="+", choices=CHANGEABLE, default=(), metavar="OPTION",
        help=f"with --resume, options that may differ from the checkpoint's: {', '.join(CHANGEABLE)}")  # fmt: skip
    add("--save-every", type=positive_float, default=10.0, metavar="MINUTES",
        help="also save within an epoch, so often (default: 10)")  # fmt: skip
    add("--tensorboard", action="store_true", help="also write TensorBoard event files to the output folder")

    options = parser.parse_args(argv)
    options.program = parser.prog
    try:
        _check(options)
    except UsageError as error:
        parser.error(str(error))
    return options


def apply_recipe(options, recipe):
    """Fill the training options that were not given from a recipe; returns new options."""
    filled = argparse.Namespace(**vars(options))
    for name in ("epochs", "batch_size", "lr", "milestones", "reg_weight"):
        if getattr(filled, name) is None:
            setattr(filled, name, getattr(recipe, name))
    filled.milestones = sorted(filled.milestones)
    return filled


def _overview(recipe):
    drops = f", x0.1 after epochs {', '.join(map(str, recipe.milestones))}" if recipe.milestones else ""
    text = f"recipe: Adam, lr {recipe.lr:g}{drops}, {recipe.epochs} epochs, batch {recipe.batch_size}"
    if recipe.digits:
        text += f"; on digits: lr {recipe.digits.lr:g}, {recipe.digits.epochs} epochs"
    return text


# ---- checks -------------------------------------------------------------------------------------------------------


def _check(options):
    if options.type not in ("rank", "lowrank") and options.rank is not None:
        raise UsageError(f"-r/--rank has no meaning with -t {options.type}: it belongs to rank and lowrank")
    if options.type != "sparse" and options.sparsity is not None:
        raise UsageError(f"-s/--sparsity has no meaning with -t {options.type}: it belongs to sparse")
    if options.type == "rank":
        options.rank = 1.0 if options.rank is None else options.rank
        if not 0 < options.rank <= 1:
            raise UsageError(f"-r/--rank is a share in (0, 1] with -t rank, got {options.rank:g}")
    if options.type == "lowrank":
        options.rank = 10 if options.rank is None else options.rank
        if not (options.rank >= 1 and float(options.rank).is_integer()):
            raise UsageError(f"-r/--rank must be an integer of at least 1 with -t lowrank, got {options.rank:g}")
        options.rank = int(options.rank)
    if options.type == "sparse":
        options.sparsity = 0.25 if options.sparsity is None else options.sparsity
        if not 0 <= options.sparsity < 1:
            raise UsageError(f"-s/--sparsity must lie in [0, 1), got {options.sparsity:g}")
    if not 0 < options.alpha <= 1:
        raise UsageError(f"--alpha must lie in (0, 1], got {options.alpha:g}")
    if not 0 < options.width < math.inf:
        raise UsageError(f"--width must be a positive number, got {options.width:g}")
    if not options.count_only and (options.num_classes or options.in_channels):
        raise UsageError("--num-classes and --in-channels go with --count-only: in training the data decides")
    if options.count_only and options.resume:
        raise UsageError("--count-only trains nothing, so there is nothing to --resume")
    if options.may_change and not options.resume:
        raise UsageError("--may-change goes with --resume")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed must be a non-negative 64-bit integer, got {options.seed}")
    _check_device(options.device)
    if options.sync_batch_norm and torch.device(options.device).type == "cpu":
        raise UsageError("--sync-batch-norm needs GPUs: torch has no synchronised BatchNorm for CPUs")
    if options.amp is None:
        options.amp = torch.device(options.device).type == "cpu" and cpu_computes_in_bfloat16()


def cpu_computes_in_bfloat16():
    """True where the CPU has instructions for bfloat16; without them autocast takes many times as long as float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _check_device(name):
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is not a device: give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise UsageError(f"--device {name} asks for a GPU, but torch finds {found} here: use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not supported: give cpu, cuda or cuda:N")


def positive_int(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positive_float(text):
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def non_negative_float(text):
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value


# ---- from options to layers ---------------------------------------------------------------------------------------


def conv_factory(options):
    """The `conv` that a network is built with: nn.Conv2d or a LinearConv of the chosen type and setting."""
    if options.type == "dense":
        return nn.Conv2d
    return Variant.of(options).conv


def describe_variant(options):
    """The variant in words, as the report's first line has it."""
    if options.type == "dense":
        return "dense (nn.Conv2d)"
    if options.type == "sparse":
        setting = f"pruned to {options.sparsity:.0%}"
    elif options.type == "lowrank":
        setting = f"rank {options.rank}"
    else:
        setting = "full rank" if options.rank == 1 else f"rank {options.rank:g} of the primary filters"
    return f"LinearConv, {setting}, alpha {options.alpha:g}"


def run_name(options, dataset):
    """Name of a run's folder: what distinguishes it from its neighbours, as in `VGG11-rank1-cifar10-seed0`."""
    setting = options.sparsity if options.type == "sparse" else options.rank
    variant = options.type if setting is None else f"{options.type}{setting:g}"
    if dataset == "imagefolder":
        dataset = Path(options.data_root).resolve().name
    parts = [options.network, variant, dataset, f"seed{options.seed}"]
    if options.alpha != 0.5 and options.type != "dense":
        parts.insert(2, f"alpha{options.alpha:g}")
    if options.width != 1:
        parts.insert(1, f"width{options.width:g}")
    return "-".join(parts)
