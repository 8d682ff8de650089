"""The command line of all training scripts: options, defaults, and checks that need no data.

    python models/<arch>_xcnn.py -t TYPE [-r RANK] [-s SPARSITY] [options]

Wrong options end the script with one line on stderr and exit code 2.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from baselines import method_of
from dataloaders import DATASETS, IN_MEMORY
from linearconv_variants import OneLineParser, Variant, non_negative_int, positive_float, positive_int
from training.networks import Networks
from training.recipe import CHANGEABLE, RECIPES, SHORT, Recipe, add_recipe_options


class Options(argparse.Namespace):
    """The parsed command line.

    Each option is an attribute, except that `variant` (a :class:`linearconv_variants.Variant` or a
    :class:`baselines.Baseline`) replaces `type`, `rank` and so on. `program`, `networks` and `given`, the values that
    are not the parser's defaults, are attributes too. Recipe options that were not given are None: the recipe decides.
    """

    def pick(self, *names: str) -> dict[str, object]:
        """Return some of the options as keyword arguments."""
        return {name: getattr(self, name) for name in names}


def parse_arguments(parser: OneLineParser, argv: Sequence[str] | None = None) -> Options:
    """Parse and check a command line with the parser of :func:`make_parser`.

    Raises:
        SystemExit: with code 2 after one line on stderr.
    """
    parsed = vars(parser.parse_args(argv))
    given = {name: value for name, value in parsed.items() if value != parser.get_default(name)}
    others = {name: value for name, value in parsed.items() if name not in Variant.__dataclass_fields__}
    try:
        variant = method_of(argparse.Namespace(**parsed))
        _check_device(parsed["device"])
    except ValueError as error:
        parser.error(error)
    options = Options(**others, variant=variant, program=parser.prog, given=given)
    if not 0 <= options.seed < 2**63:
        parser.error(f"--seed must be a non-negative 64-bit integer, got {options.seed}")
    if options.amp is None:
        options.amp = options.device == "cpu" and cpu_computes_in_bfloat16()
    return options


def make_parser(
    networks: dict[str, Callable] | Networks, recipe: Recipe, digits_recipe: Recipe | None = None
) -> OneLineParser:
    """Return the parser of a training script; the arguments are those of :func:`training.main`."""
    on_digits = f"; on digits: {digits_recipe}" if digits_recipe else ""
    networks = Networks(networks) if isinstance(networks, dict) else networks
    short = "".join(f"; {name}: {one}" for name, one in SHORT.items())
    parser = OneLineParser(description=f"recipe: {recipe}{on_digits}{short}")
    networks.add_options(parser.add_argument_group("network"))

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, help="default: cifar10, or digits (bundled) if it is not available")
    add("--data-root", default="dataset", metavar="DIR", help="folder of the data sets (default: dataset)")
    add("--no-download", dest="download", action="store_false", help="use only the files in --data-root")
    add("--image-size", type=positive_int, default=32, help="imagefolder only: side in pixels (default: 32)")
    kept = "imagefolder only: keep the images in memory, or stream them from disk (default: auto, by the free memory)"
    add("--in-memory", choices=IN_MEMORY, default="auto", help=kept)
    workers = "worker processes per process, to decode streamed images (default: one per core, at most 8)"
    add("--workers", type=non_negative_int, metavar="N", help=workers)
    add("--validation", type=non_negative_int, default=0, metavar="N", help="hold out N training images as test images")

    group = parser.add_argument_group("recipe (defaults come from --recipe)")
    kinds = "the architecture's own, a short one, or a careful one for trained weights"
    usual = networks.defaults.get("recipe", "paper")
    group.add_argument("--recipe", choices=RECIPES, default="paper", help=f"{kinds} (default: {usual})")
    add_recipe_options(group, networks.starts, networks.without)

    add = parser.add_argument_group("training").add_argument
    add("--seed", type=int, default=0, help="seed of initialisation, shuffling and augmentation (default: 0)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda or cuda:N (default: cuda if there is a GPU)")
    switch = argparse.BooleanOptionalAction
    add("--channels-last", action=switch, help="memory format of images and feature maps (default: on)")
    add("--amp", action=switch, help="bfloat16 autocast (default: on for CPUs that compute in bfloat16, elsewhere off)")
    add("--sync-batch-norm", action="store_true", help="on several GPUs: BatchNorm over the batches of all processes")
    add("--deterministic", action="store_true", help="deterministic operations only: exact resume on GPUs too (slower)")
    add("--compile", action=switch, help="torch.compile the network (default: off; slower on a CPU)")

    add = parser.add_argument_group("run and output").add_argument
    add("--count-only", action="store_true", help="print parameters and FLOPs and stop; no data is read")
    add("--num-classes", type=positive_int, help="for --count-only; otherwise the data decides (default: 10)")
    add("--in-channels", type=positive_int, help="for --count-only; otherwise the data decides (default: 3)")
    add("--output", metavar="DIR", help="folder of report, log and checkpoints (default: ckpt/<script>/<run name>)")
    resume = "resume from the newest undamaged checkpoint in the output folder; auto: start anew if there is none"
    add("--resume", nargs="?", choices=("always", "auto"), const="always", default="never", help=resume)
    differing = f"with --resume, options that may differ from the checkpoint's: {', '.join(CHANGEABLE)}"
    add("--may-change", nargs="+", choices=CHANGEABLE, default=(), metavar="OPTION", help=differing)
    add("--save-every", type=positive_float, default=10.0, metavar="MINUTES", help="also within an epoch (default: 10)")
    parser.set_defaults(networks=networks, channels_last=True, compile=False, **networks.defaults)
    return parser


def run_name(options: Options, dataset: str) -> str:
    """Return the name of a run's folder, such as `VGG11-rank1-cifar10-seed0`."""
    recipe = [options.recipe] if options.recipe != options.networks.defaults.get("recipe", "paper") else []
    return "-".join([*options.networks.label(options), *recipe, dataset_label(options, dataset), f"seed{options.seed}"])


def dataset_label(options: Options, dataset: str | None) -> str | None:
    """Return the name of a data set; for imagefolder, the name of the folder."""
    return Path(options.data_root).resolve().name if dataset == "imagefolder" else dataset


def _check_device(name):
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device {name} is not supported: give cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count()
    if name != "cpu" and (torch.device(name).index or 0) >= gpus:
        raise ValueError(f"--device {name} needs a GPU, but torch finds {gpus or 'no'} CUDA devices")


def cpu_computes_in_bfloat16() -> bool:
    """Return True if the CPU has instructions for bfloat16; without them autocast is much slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
