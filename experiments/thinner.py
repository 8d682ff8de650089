"""Thinner dense networks with the cost of another network, as the reference that this network must exceed.

    python -m experiments.thinner models/base_xcnn.py -t rank -r 1
    python -m experiments.thinner models/resnet_xcnn.py --network ResNet34 -t lowrank -r 10 --num-classes 100

Prints the width multipliers (--width of the scripts) with which the dense network has the parameters, or the
multiply-adds at inference, of the given network. Images are 32x32.
"""

import importlib.util
import inspect
import math
import sys
from argparse import RawDescriptionHelpFormatter
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count as count_from
from pathlib import Path

import torch
import torch.nn as nn

from linearconv_variants import OneLineParser
from training.counting import count_parameters, macs_inference
from training.errors import EXPECTED, UsageError, report_failure
from training.options import make_parser, parse_arguments
from training.recipe import Recipe

STEP = 2.0**-24  # widths closer than this build the same network
MAX_WIDTH = 16
TOLERANCE = 0.01  # share of the target by which the count may exceed it
SIDE = 32  # side of the images in pixels
Count = Callable[[nn.Module], int]


def width_for(network: Callable[..., nn.Module], target: int, count: Count = count_parameters, **shape: int) -> float:
    """Return the width of the dense network whose count is closest to a target, with the fewest decimals.

    Channel counts are rounded, so that the count rises in steps over the width. Two networks are candidates: the
    largest that does not exceed the target, and the next one, if it exceeds the target by at most `TOLERANCE`.

    Args:
        network: the constructor, which takes `width` and the shape.
        target: target of the count.
        count: function that counts parameters, or another quantity that grows with the width, on the meta device.
        shape: `in_channels` and `num_classes` for the constructor.

    Raises:
        UsageError: if one channel per layer already exceeds the target.
    """

    def at(width):
        with torch.device("meta"):
            model = network(width=width, **shape)
        return count(model)

    steps = bisect_right(range(round(MAX_WIDTH / STEP)), target, key=lambda steps: at(steps * STEP))
    if steps == 0:
        raise UsageError(f"with one channel a layer the network counts {at(0.0):,} already, more than {target:,}")
    below, above = at((steps - 1) * STEP), at(steps * STEP)
    width, counted, towards = (steps - 1) * STEP, below, math.floor
    if above - target < target - below and above <= (1 + TOLERANCE) * target:
        width, counted, towards = steps * STEP, above, math.ceil
    for digits in count_from(1):
        rounded = towards(width * 10**digits) / 10**digits
        if rounded > 0 and at(rounded) == counted:
            return rounded


def macs_of(in_channels: int = 3) -> Count:
    """Return the function that counts multiply-adds at inference for an image with `in_channels` channels."""
    return partial(macs_inference, input_size=(in_channels, SIDE, SIDE))


def networks_of(script: Path) -> dict[str, Callable[..., nn.Module]]:
    """Return the networks of a script in models/ by name, in the script's order, without their base classes."""
    name = f"models.{script.stem}"
    if not script.is_file() or importlib.util.find_spec(name) is None:
        raise UsageError(f"there is no script {script} of models/")
    module = importlib.import_module(name)
    classes = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == name]
    networks = [kind for kind in classes if "width" in inspect.signature(kind).parameters]
    bases = {base for network in networks for base in network.__mro__[1:]}
    found = {network.__name__: network for network in networks if network not in bases}
    if not found:
        raise UsageError(f"{script} has no networks")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="of models/, followed by its options")
    own, rest = parser.parse_known_args(argv)
    try:
        networks = networks_of(own.script)
        options = parse_arguments(make_parser(networks, Recipe(lr=1e-3, epochs=1)), ["--count-only", *rest])
        network, shape = networks[options.network], {"num_classes": options.num_classes or 10}
        shape["in_channels"] = options.in_channels or 3
        model = options.variant.build(network, width=options.width, **shape)
        macs = macs_of(shape["in_channels"])
        line = "{:28s}{:12,} parameters {:16,} multiply-adds"
        print(line.format(f"{options.network}, {options.variant.label}", count_parameters(model), macs(model)))
        for title, count in (("dense, equal parameters", count_parameters), ("dense, equal multiply-adds", macs)):
            width = width_for(network, count(model), count, **shape)
            thin = network(width=width, **shape)
            print(line.format(title, count_parameters(thin), macs(thin)), f"  --width {width:g}")
    except ValueError as error:
        return report_failure(UsageError(f"the network cannot be built: {error}"), "thinner")
    except EXPECTED as error:
        return report_failure(error, "thinner")
    return 0


if __name__ == "__main__":
    sys.exit(main())
