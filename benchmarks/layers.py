"""Comparison of building filters and combining feature maps for each layer: the measurement behind `compute="auto"`.

    python -m benchmarks.layers                           # every layer of the six networks, training and inference
    python -m benchmarks.layers --precision bfloat16

For each layer shape, nn.Conv2d, `filters` and `features` take turns. For several values of the rule's constant
linearconv.MAP_COST, the command compares the total time of all layers of a network with the choices of the rule to the
total time with the faster choice for each layer. The results are in results/layers_<device>_<precision>.json.
"""

import itertools
import statistics
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn as nn

from benchmarks.contenders import IMAGE, NETWORKS, TASKS, TRAINING, VARIANTS
from benchmarks.measuring import add_network_options, command_line, measure
from training.checkpoints import write_json
from training.memory import keep_freed_memory
from training.report import ROOT, origin

WAYS = ("filters", "features")
MEASURED_TASKS = ("train 50", "infer 50", "infer 8")
MAP_COSTS = (16, 32, 64, 96, 128, 192, 256)  # candidate values of the constant


def layers_of(network: Callable[[], nn.Module]) -> Counter:
    """Return {(arguments of nn.Conv2d, side of the input): number of layers} for all layers with one group."""
    found = Counter()

    def note(layer, inputs, _):
        arguments = (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
        found[(*arguments, layer.bias is not None, inputs[0].shape[-1])] += layer.groups == 1

    model = network().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.randn(1, *IMAGE))
    return +found  # without zeros


def make_step(layer: nn.Module, images: torch.Tensor, training: bool, precision: str) -> Callable[[], None]:
    """Return a function that runs the layer once: the forward pass, in training also the backward pass."""
    layer.to(images.device, memory_format=torch.channels_last).train(training)
    images = images.detach().requires_grad_(training and images.shape[1] > 3)  # the input images get no gradient
    wanted = [tensor for tensor in (images, *layer.parameters()) if tensor.requires_grad]
    autocast = partial(torch.autocast, images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with autocast():
        gradient = torch.randn_like(layer(images).detach())

    def step():
        with torch.inference_mode(not training), autocast():
            output = layer(images)
        if training:
            torch.autograd.grad(output, wanted, gradient)

    return step


def benchmark(task: str, key: tuple, options: Namespace) -> dict[str, float]:
    """Return the median microseconds of each contender for a layer of :func:`layers_of`."""
    *arguments, bias, side = key
    images = torch.randn(TASKS[task], arguments[0], side, side, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    if arguments[0] > 3:  # the input images of a network are in float32
        images = images.to(getattr(torch, options.precision))
    layers = {"dense": nn.Conv2d(*arguments, bias=bias)}
    for (variant, conv), way in itertools.product(VARIANTS.items(), WAYS):
        layers[f"{variant}, {way}"] = conv(*arguments, bias=bias, compute=way)
    steps = {name: make_step(layer, images, task in TRAINING, options.precision) for name, layer in layers.items()}
    seconds = measure(steps, options.seconds, options.device)
    return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}


def shares_of_the_best(rows: Sequence[dict], map_cost: float) -> dict[tuple[str, str, str], float]:
    """Return the time of all layers with the faster choices, divided by their time with the choices of the rule.

    There is one share, at most 1, for each network, task and variant in the rows of the result file.
    """
    best, rule = Counter(), Counter()
    for row, (variant, conv) in itertools.product(rows, VARIANTS.items()):
        *arguments, bias, _ = row["layer"]
        layer = conv(*arguments, bias=bias, device="meta")
        saved = layer.secondary_channels * layer.filter_size - layer.coefficients  # multiply-adds of a position
        chosen = "features" if saved > map_cost * layer.out_channels else "filters"
        taken = {way: row["count"] * row["microseconds"][f"{variant}, {way}"] for way in WAYS}
        key = row["network"], row["task"], variant
        best[key] += min(taken.values())
        rule[key] += taken[chosen]
    return {key: best[key] / rule[key] for key in best}


def main() -> None:
    """Run the command line: measure and evaluate."""
    parser = command_line(__doc__)
    add_network_options(parser, NETWORKS, NETWORKS, seconds=1)
    options = parser.parse_args()
    rows, measured = [], {}
    for task, network in itertools.product(MEASURED_TASKS, options.networks):
        for key, count in layers_of(NETWORKS[network]).items():
            if (task, key) not in measured:
                measured[task, key] = benchmark(task, key, options)
            row = {"network": network, "task": task, "layer": list(key), "count": count}
            rows.append(row | {"microseconds": measured[task, key]})
        print(f"{network}, {task}: measured", flush=True)
    map_costs = {}
    for map_cost in MAP_COSTS:
        shares = shares_of_the_best(rows, map_cost).values()
        map_costs[map_cost] = {"mean": statistics.mean(shares), "least": min(shares)}
        print(f"MAP_COST {map_cost}: {statistics.mean(shares):.4f} of the best choice, at least {min(shares):.3f}")
    record = {"origin": origin(options.device), "map_costs": map_costs, "rows": rows}
    write_json(options.output or ROOT / "results" / f"layers_{options.device}_{options.precision}.json", record)


if __name__ == "__main__":
    keep_freed_memory()
    main()
