"""Made filters against combined feature maps, layer by layer: the measurement behind `compute="auto"`.

    python benchmarks/layers.py                 # every layer of the six networks: training and inference
    python benchmarks/layers.py --fit           # and fit the constants of linearconv_features.py to what was measured
    python benchmarks/layers.py --fit --read    # fit to an earlier measurement

For each shape of layer nn.Conv2d, `filters` and `features` take turns. What is reported for the rule is the time of all
layers of a network if each were run in the way the rule chooses, against the better of the two ways.
Writes results/layers_<device>_<precision>.json.
"""

import argparse
import itertools
import json
import statistics
import sys
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

import torch
import torch.nn as nn

import linearconv_features as features
from benchmarks.measuring import measure, origin
from benchmarks.speed import NETWORKS, TASKS, VARIANTS
from training.files import write_json

WAYS = ("filters", "features")


def layers_of(network):
    """Arguments of nn.Conv2d, side of its input and number of such layers, for all that have one group."""
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
        model(torch.randn(1, 3, 32, 32))
    return found


def make_step(layer, images, training, autocast):
    """A function that runs the layer once, forward only or with its backward pass."""
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


def benchmark(task, key, options):
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


def chosen_way(row, variant, precision):
    """What linearconv_features.py chooses for a measured layer."""
    layer, positions = _layer_and_positions(variant, TASKS[row["task"]], *row["layer"])
    return layer.mode_at(positions, row["task"].startswith("train"), precision)


@cache
def _layer_and_positions(variant, batch, *key):
    *arguments, bias, side = key
    layer = VARIANTS[variant](*arguments, bias=bias, device="meta")
    output = layer(torch.empty(batch, arguments[0], side, side, device="meta"))
    return layer, output[:, 0].numel()


def judge(rows, precision):
    """Time of all layers of a network as the rule runs them, relative to dense and to the better way of each layer."""
    verdicts = []
    for network, task in dict.fromkeys((row["network"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["task"]) == (network, task)]
        for variant in VARIANTS:
            dense = sum(row["count"] * row["microseconds"]["dense"] for row in mine)
            rule = sum(
                row["count"] * row["microseconds"][f"{variant}, {chosen_way(row, variant, precision)}"] for row in mine
            )
            best = sum(row["count"] * min(row["microseconds"][f"{variant}, {way}"] for way in WAYS) for row in mine)
            verdicts.append({"network": network, "task": task, "variant": variant,
                             "speed_against_dense": dense / rule, "of_the_best_choice": best / rule})  # fmt: skip
    return verdicts


def fit(rows, precision):
    """The constants of the rule that lose least against the best choice, in the mean over networks and tasks."""
    coefficients, elements = (1.0, 1.5, 2.0, 3.0), (20, 40, 60, 80, 100, 120, 160, 240, 320, 480, 640, 960, 1280)
    calls = (0.0, 2e5, 4e5, 6e5, 1e6, 1.5e6, 3e6, 6e6)
    results = {}
    for constants in itertools.product(coefficients, map(float, elements), calls):
        features.MEASURED[precision] = features.Costs(*constants)
        verdicts = judge(rows, precision)
        results[features.Costs(*constants)] = statistics.mean(verdict["of_the_best_choice"] for verdict in verdicts)
    for constants, score in sorted(results.items(), key=lambda item: -item[1])[:10]:
        print(f"{score:.4f} of the best choice with {constants}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["train 50", "infer 50", "infer 1"])
    parser.add_argument("--seconds", type=float, default=2, help="a layer and task is timed for (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(features.MEASURED), default="float32")
    parser.add_argument("--output", type=Path, help="default: results/layers_<device>_<precision>.json")
    parser.add_argument("--fit", action="store_true", help="fit the constants of linearconv_features.py")
    parser.add_argument("--read", action="store_true", help="measure nothing, read the output file")
    options = parser.parse_args()
    output = options.output or ROOT / "results" / f"layers_{options.device}_{options.precision}.json"
    if options.read:
        rows = json.loads(output.read_text())["rows"]
    else:
        rows = []
        for task in options.tasks:
            measured = {}
            for network in options.networks:
                for key, count in layers_of(NETWORKS[network]).items():
                    if key not in measured:
                        measured[key] = benchmark(task, key, options)
                    rows.append({"network": network, "task": task, "layer": list(key), "count": count,
                                 "microseconds": measured[key]})  # fmt: skip
                print(f"{network}, {task}: measured", flush=True)
        record = {"origin": origin(options, "layers.py"), "rule": features.MEASURED[options.precision]._asdict()}
        write_json(output, record | {"judged": judge(rows, options.precision), "rows": rows})
    for verdict in judge(rows, options.precision):
        print("{network}, {task}, {variant}: {speed_against_dense:.2f} of dense, "
              "{of_the_best_choice:.3f} of the best choice".format(**verdict))  # fmt: skip
    if options.fit:
        fit(rows, options.precision)


if __name__ == "__main__":
    main()
