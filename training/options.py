"""The command line that all training scripts share: options, their defaults, and the checks that need no data.

    python models/<arch>_xcnn.py -t TYPE [-r RANK] [-s SPARSITY] [options]

Whatever is wrong ends the script with one line on stderr and exit code 2.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from baselines import method_of
from dataloaders import DATASETS, IN_MEMORY
from linearconv_variants import (
    OneLineParser,
    Variant,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    share,
)
from training.networks import Constructed
from training.recipe import CHOICES, RECIPES, SHORT, Recipe

CHANGEABLE = ("lr", "milestones", "batch_size", "reg_weight", "amp", "processes")


class Options(argparse.Namespace):
    """What the command line asks for; it does not change after parsing.

    Beside an attribute for each option there are `variant` (a :class:`linearconv_variants.Variant`, in the place of
    `type`, `rank` and so on), `program`, and `networks`, where the networks come from. Training options that were not
    given are None: the recipe decides.
    """

    def __init__(self, **options: object) -> None:
        self.__dict__.update(options)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"options do not change after parsing: {name} = {value!r}")

    def pick(self, *names: str) -> dict[str, object]:
        """Return some of the options by name, to be handed on as keyword arguments."""
        return {name: getattr(self, name) for name in names}


def parse_arguments(parser: OneLineParser, argv: Sequence[str] | None = None) -> Options:
    """Parse and check a command line.

    Args:
        parser: of :func:`make_parser`.
        argv: arguments; those of the process where left out.

    Raises:
        SystemExit: with code 2 after one line on stderr.
    """
    given = vars(parser.parse_args(argv))
    try:
        variant = method_of(argparse.Namespace(**given))
        for field in fields(Variant):
            given.pop(field.name, None)
        device = _check_device(given["device"])
        if given["amp"] is None:
            given["amp"] = device.type == "cpu" and cpu_computes_in_bfloat16()
        options = Options(**given, variant=variant, program=parser.prog)
        _check(options)
        options.networks.check(options)
    except ValueError as error:
        parser.error(error)
    return options


def make_parser(
    networks: dict[str, Callable] | Constructed, recipe: Recipe, digits_recipe: Recipe | None = None
) -> OneLineParser:
    """Return the parser of a training script.

    Args:
        networks: network constructors by name, the first being the default, or another source of networks.
        recipe, digits_recipe: where the training options have their defaults.
    """
    on_digits = f"; on digits: {digits_recipe}" if digits_recipe else ""
    networks = Constructed(networks) if isinstance(networks, dict) else networks
    short = "".join(f"; {name}: {one}" for name, one in SHORT.items())
    parser = OneLineParser(description=f"recipe: {recipe}{on_digits}{short}")
    networks.add_options(parser.add_argument_group("network"))

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, help="default: cifar10, where it is not to be had digits (bundled)")
    add("--data-root", default="dataset", metavar="DIR", help="where data sets lie (default: dataset)")
    add("--no-download", dest="download", action="store_false", help="use only what lies in --data-root")
    add("--image-size", type=positive_int, default=32, help="imagefolder only: side in pixels (default: 32)")
    kept = "imagefolder only: keep the images in memory, or stream them from disk (default: auto, by what is free)"
    add("--in-memory", choices=IN_MEMORY, default="auto", help=kept)
    decoding = "that decode streamed images, of each process (default: one a core, at most 8)"
    add("--workers", type=non_negative_int, metavar="N", help=f"processes {decoding}")
    add("--validation", type=non_negative_int, default=0, metavar="N", help="hold out N training images as test images")

    add = parser.add_argument_group("recipe (what is left out is --recipe's)").add_argument
    kinds = "the architecture's own, a short one, or a careful one for trained weights"
    add(
        "--recipe",
        choices=RECIPES,
        default="paper",
        help=f"{kinds} (default: {networks.defaults.get('recipe', 'paper')})",
    )
    add("--epochs", type=positive_int, help="passes over the training images")
    add("--batch-size", type=positive_int, help="of each process")
    add("--lr", type=positive_float, help="learning rate")
    drops = "epochs after which the rate falls to a tenth"
    add("--milestones", type=positive_int, nargs="*", metavar="EPOCH", help=drops)
    add("--schedule", choices=CHOICES["schedule"], help="steps: drops at milestones; the others end at zero")
    add("--warmup", type=non_negative_float, metavar="EPOCHS", help="in which the learning rate rises")
    add("--optimizer", choices=CHOICES["optimizer"], help="sgd has Nesterov momentum 0.9")
    add("--weight-decay", type=non_negative_float, help="of matrices and filters; decoupled with adamw")
    add("--decay", choices=CHOICES["decay"], help="what decays in LinearConv: its parameters, or the filters they make")
    add("--bias-lr", type=positive_float, metavar="FACTOR", help="learning rate of BatchNorm biases, as a multiple")
    add("--coefficient-lr", type=positive_float, metavar="FACTOR", help="that of LinearConv's coefficients, likewise")
    add("--label-smoothing", type=share, help="share of the target that all classes have together")
    add("--flip", choices=CHOICES["flip"], help="of training images: at random, or each on every second epoch")
    add("--average", type=non_negative_float, metavar="EPOCHS", help="over which weights are averaged for evaluation")
    add("--reg-weight", type=non_negative_float, help="of the regularisers, every 10th batch; 0 is the paper's '-L'")
    add("--clip", type=non_negative_float, metavar="NORM", help="largest norm of a step's gradient; 0: any")
    add("--init", choices=networks.starts, help="how LinearConv layers start")
    add("--stem", choices=CHOICES["stem"], help="what convolves the images: the variant, or always nn.Conv2d")
    add("--dense-epochs", type=non_negative_int, metavar="N", help="train the dense network first, then convert it")

    add = parser.add_argument_group("training").add_argument
    add("--seed", type=int, default=0, help="of initialisation, shuffling and augmentation (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N (default: cuda)")
    switch = argparse.BooleanOptionalAction
    add("--channels-last", action=switch, default=True, help="memory format of images and feature maps (default: on)")
    add("--amp", action=switch, help="bfloat16 autocast (default: on for CPUs that compute in bfloat16, elsewhere off)")
    add("--sync-batch-norm", action="store_true", help="several processes on GPUs: BatchNorm over all of their batch")
    add("--deterministic", action="store_true", help="deterministic operations only: exact resume on GPUs too (slower)")
    add("--compile", action=switch, default=False, help="torch.compile the network (default: off; slower on a CPU)")

    add = parser.add_argument_group("what is done and kept").add_argument
    add("--count-only", action="store_true", help="print parameters and FLOPs and stop; no data is read")
    add("--num-classes", type=positive_int, help="for --count-only; otherwise the data decides (default: 10)")
    add("--in-channels", type=positive_int, help="for --count-only; otherwise the data decides (default: 3)")
    add("--output", metavar="DIR", help="for report.json, log.jsonl, checkpoints (default: ckpt/<script>/<run name>)")
    going_on = "go on from the newest good checkpoint in the output folder; auto: where there is none, begin"
    add("--resume", nargs="?", choices=("always", "auto"), const="always", default="never", help=going_on)
    differing = f"with --resume, options that may differ from the checkpoint's: {', '.join(CHANGEABLE)}"
    add("--may-change", nargs="+", choices=CHANGEABLE, default=(), metavar="OPTION", help=differing)
    add("--save-every", type=positive_float, default=10.0, metavar="MINUTES", help="also within an epoch (default: 10)")
    add("--tensorboard", action="store_true", help="also write TensorBoard event files to the output folder")
    parser.set_defaults(networks=networks, **networks.defaults)
    return parser


def run_name(options: Options, dataset: str) -> str:
    """Return the name of a run's folder: what distinguishes it from its neighbours, as `VGG11-rank1-cifar10-seed0`."""
    recipe = [options.recipe] if options.recipe != options.networks.defaults.get("recipe", "paper") else []
    return "-".join([*options.networks.label(options), *recipe, dataset_label(options, dataset), f"seed{options.seed}"])


def dataset_label(options: Options, dataset: str | None) -> str | None:
    """Return what a data set is called: of an imagefolder that is the name of its folder."""
    return Path(options.data_root).resolve().name if dataset == "imagefolder" else dataset


def _check(options):
    """Raise a ValueError for what does not go together or is not to be had here."""
    resume = options.resume != "never"
    labelled = options.distill != 1  # soft targets alone need no labels
    if not options.count_only and ((options.num_classes and labelled) or options.in_channels):
        raise ValueError("--num-classes and --in-channels go with --count-only: in training the data decides")
    if options.count_only and resume:
        raise ValueError("--count-only trains nothing, so there is nothing to --resume")
    if options.may_change and not resume:
        raise ValueError("--may-change goes with --resume")
    if options.in_memory == "no" and options.dataset != "imagefolder":
        raise ValueError("--in-memory no goes with --dataset imagefolder: the other sets are always kept in memory")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed must be a non-negative 64-bit integer, got {options.seed}")
    if options.sync_batch_norm and torch.device(options.device).type == "cpu":
        raise ValueError("--sync-batch-norm needs GPUs: torch has no synchronised BatchNorm for CPUs")


def _check_device(name):
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is not a device: give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise ValueError(f"--device {name} asks for a GPU, but torch finds {found} here: use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name} is not supported: give cpu, cuda or cuda:N")
    return device


def cpu_computes_in_bfloat16() -> bool:
    """Return True where the CPU has instructions for bfloat16; without them autocast is far slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
