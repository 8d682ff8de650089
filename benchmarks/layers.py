"""Made filters against combined feature maps, layer by layer: the measurement behind `compute="auto"`.

    python -m benchmarks.layers                 # every layer of the six networks: training and inference
    python -m benchmarks.layers --fit           # and fit the constants of linearconv_features.py to what was measured
    python -m benchmarks.layers --fit --read    # fit to an earlier measurement
    python -m benchmarks.layers --device cuda --precision bfloat16 --tasks "train 256" "infer 256" "infer 1024"

For each shape of layer nn.Conv2d, `filters` and `features` take turns. What is reported for the rule is the time of all
layers of a network if each were run in the way the rule chooses, against the better of the two ways.
Writes results/layers_<device>_<precision>.json.
"""

import itertools
import json
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import inf
from pathlib import Path

import torch
import torch.nn as nn
from linearconv_features import MEASURED, NEVER, Costs, measured_as

from benchmarks.contenders import IMAGE, NETWORKS, TASKS, VARIANTS
from benchmarks.measuring import command_line, keep_freed_memory, measure
from training.checkpoints import write_json
from training.report import ROOT, origin

WAYS = ("filters", "features")


def layers_of(network: Callable[[], nn.Module]) -> dict[tuple, int]:
    """Return the number of layers by (arguments of nn.Conv2d, side of the input), for all that have one group."""
    found = {}

    def note(layer, inputs, _):
        if layer.groups == 1:
            arguments = (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
            key = (*arguments, layer.bias is not None, inputs[0].shape[-1])
            found[key] = found.get(key, 0) + 1

    model = network().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.randn(1, *IMAGE))
    return found


def make_step(
    layer: nn.Module, images: torch.Tensor, training: bool, autocast: Callable[[], torch.autocast]
) -> Callable[[], None]:
    """Return a function that runs the layer once, forward only or with its backward pass."""
    layer.to(images.device, memory_format=torch.channels_last).train(training)
    if not training:

        @torch.inference_mode()
        def step():
            with autocast():
                layer(images)

        return step
    images = images.detach().requires_grad_(images.shape[1] > 3)  # images themselves get no gradient
    wanted = [tensor for tensor in (images, *layer.parameters()) if tensor.requires_grad]
    with autocast():
        gradient = torch.randn_like(layer(images).detach())

    def step():
        with autocast():
            output = layer(images)
        torch.autograd.grad(output, wanted, gradient)

    return step


def benchmark(task: str, key: tuple, options: Namespace) -> dict[str, float]:
    """Return the median microseconds of each contender, for a layer of :func:`layers_of`."""
    in_channels, out_channels, kernel, stride, padding, bias, side = key
    arguments = (in_channels, out_channels, kernel, stride, padding)
    images = torch.randn(TASKS[task], in_channels, side, side, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    images = images.to(getattr(torch, options.precision) if in_channels > 3 else torch.float32)  # as the layer before
    layers = {"dense": nn.Conv2d(*arguments, bias=bias)}
    for variant, conv in VARIANTS.items():
        for way in WAYS:
            layers[f"{variant}, {way}"] = conv(*arguments, bias=bias, compute=way)
    training = task.startswith("train")
    autocast = partial(torch.autocast, options.device, torch.bfloat16, enabled=options.precision == "bfloat16")
    steps = {name: make_step(layer, images, training, autocast) for name, layer in layers.items()}
    seconds = measure(steps, options.seconds, options.device)
    return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}


def chosen_way(row: dict, variant: str, precision: str, device: str) -> str:
    """Return what linearconv_features.py chooses for a measured layer."""
    layer, positions = _layer_and_positions(variant, TASKS[row["task"]], *row["layer"])
    return layer.mode_at(positions, row["task"].startswith("train"), precision, device)


@cache
def _layer_and_positions(variant, batch, *key):
    *arguments, bias, side = key
    layer = VARIANTS[variant](*arguments, bias=bias, device="meta")
    output = layer(torch.empty(batch, arguments[0], side, side, device="meta"))
    return layer, output[:, 0].numel()


def judge(rows: Sequence[dict], precision: str, device: str) -> list[dict]:
    """Compare the time of all layers of a network as the rule runs them with dense and the better way of each layer.

    Args:
        rows: of the result file.
        precision, device: that they were measured in and on.

    Returns:
        For each network, task and variant `speed_against_dense` and, at most 1, `of_the_best_choice`.
    """
    verdicts = []
    for network, task in dict.fromkeys((row["network"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["task"]) == (network, task)]
        for variant in VARIANTS:
            dense = rule = best = 0.0
            for row in mine:
                taken, count = row["microseconds"], row["count"]
                dense += count * taken["dense"]
                rule += count * taken[f"{variant}, {chosen_way(row, variant, precision, device)}"]
                best += count * min(taken[f"{variant}, {way}"] for way in WAYS)
            verdict = {"speed_against_dense": dense / rule, "of_the_best_choice": best / rule}
            verdicts.append({"network": network, "task": task, "variant": variant} | verdict)
    return verdicts


def fit(rows: Sequence[dict], precision: str, device: str) -> None:
    """Print the constants of the rule that lose least against the best choice, in the mean over networks and tasks."""
    coefficients, elements = (1.0, 1.5, 2.0, 3.0), (20, 40, 60, 80, 100, 120, 160, 240, 320, 480, 640, 960, 1280)
    calls = (0.0, 2e5, 4e5, 6e5, 1e6, 1.5e6, 3e6, 6e6, 1e8, 2e8, 4e8)
    candidates = [Costs(*constants) for constants in itertools.product(coefficients, map(float, elements), calls)]
    for training in (True, False):
        mine = [row for row in rows if row["task"].startswith("train") == training]
        if not mine:
            continue
        results = {}
        for constants in (*candidates, NEVER):
            MEASURED[measured_as(device, precision, training)] = constants
            verdicts = judge(mine, precision, device)
            results[constants] = statistics.mean(verdict["of_the_best_choice"] for verdict in verdicts)
        print("training:" if training else "inference:")
        for constants, score in sorted(results.items(), key=lambda item: -item[1])[:10]:
            print(f"{score:.4f} of the best choice with {constants}")


def main() -> None:
    """Measure or read, judge and fit, as the command line asks."""
    parser = command_line(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["train 50", "infer 50", "infer 1"])
    parser.add_argument("--seconds", type=float, default=2, help="a layer and task is timed for (default: 2)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, help="default: results/layers_<device>_<precision>.json")
    parser.add_argument("--fit", action="store_true", help="fit the constants of linearconv_features.py")
    parser.add_argument("--read", action="store_true", help="measure nothing, judge what the output file holds anew")
    options = parser.parse_args()
    output = options.output or ROOT / "results" / f"layers_{options.device}_{options.precision}.json"
    if options.read:
        record = json.loads(output.read_text())
        rows = record["rows"]
    else:
        record, rows, measured = {"origin": origin(options.device)}, [], {}
        for task, network in itertools.product(options.tasks, options.networks):
            for key, count in layers_of(NETWORKS[network]).items():
                if (task, key) not in measured:
                    measured[task, key] = benchmark(task, key, options)
                row = {"network": network, "task": task, "layer": list(key), "count": count}
                rows.append(row | {"microseconds": measured[task, key]})
            print(f"{network}, {task}: measured", flush=True)
    rule = {
        task: _finite(MEASURED[measured_as(options.device, options.precision, task == "training")]._asdict())
        for task in ("training", "inference")
    }
    verdicts = judge(rows, options.precision, options.device)
    write_json(output, record | {"rule": rule, "judged": verdicts, "rows": rows})
    for verdict in verdicts:
        place = "{network}, {task}, {variant}".format(**verdict)
        against_dense, of_the_best = verdict["speed_against_dense"], verdict["of_the_best_choice"]
        print(f"{place}: {against_dense:.2f} of dense, {of_the_best:.3f} of the best choice")
    if options.fit:
        fit(rows, options.precision, options.device)


def _finite(costs):
    """Constants for a file, which has no infinity; None for what never pays."""
    return None if costs["element"] == inf else costs


if __name__ == "__main__":
    keep_freed_memory()
    main()
