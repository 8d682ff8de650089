"""Speed and memory of LinearConv against nn.Conv2d, contender by contender in one run.

    python benchmarks/speed.py                                  # all networks, training and inference; long
    python benchmarks/speed.py --networks VGG11 --rounds 30     # one of them
    python benchmarks/speed.py --precision bfloat16 --device cuda

The contenders take turns step by step, so that a machine that speeds up or slows down does so for all of them; what is
reported is the median and the quartiles of the ratios to dense within a turn. Contenders: `dense` (nn.Conv2d),
`filters` (the paper's way, all filters made at every pass), `features` (feature maps combined) and `auto` (what a layer
chooses by itself), full rank and rank 10. Writes results/speed_<device>_<precision>.json and prints its tables.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

import torch
import torch.nn as nn
import torch.nn.functional as F

import counting
from checkpoints import write_json
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from models.allconv_xcnn import AllConv
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from models.vgg_xcnn import VGG11

NETWORKS = {
    "VGG11": VGG11,
    "ResNet18": ResNet18,
    "AllConv": AllConv,
    "Base": Base,
    "MobileNetV2": MobileNetV2,
    "ResNeXt29": ResNeXt29_2x64d,
}
VARIANTS = {"full rank": LinearConv, "rank 10": partial(LinearConvLowRank, rank=10)}
MODES = ("filters", "features", "auto")
TASKS = {"train 50": 50, "infer 50": 50, "infer 1": 1, "infer 256": 256}


def contenders(modes):
    """Name and convolution of everything that is timed; the first is what the others are compared with."""
    convs = {"dense": nn.Conv2d}
    for name, conv in VARIANTS.items():
        convs |= {f"{name}, {mode}": partial(conv, compute=mode) for mode in modes}
    return convs


def make_step(network, conv, task, options):
    """A function that runs one training step or one inference pass, the network, and a function that gives its loss."""
    torch.manual_seed(0)
    device, batch = options.device, TASKS[task]
    model = network(conv=conv).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    autocast = partial(torch.autocast, options.device, torch.bfloat16, enabled=options.precision == "bfloat16")
    run = torch.compile(model) if options.compile else model

    def loss():
        with autocast():
            return F.cross_entropy(run(images), labels)

    if task.startswith("train"):
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
    else:
        model.eval()

        @torch.inference_mode()
        def step():
            for layer in model.modules():
                if isinstance(layer, LinearConv) and layer.compute == "filters":
                    layer.eval()  # drops the filters that are kept: the paper makes them at every pass
            with autocast():
                run(images)

    return step, model, loss


def kept_bytes(loss, model):
    """Bytes of distinct storage that autograd keeps of `loss()` for its backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss().backward()
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def measure(steps, rounds, device):
    """Seconds of every contender, turn by turn: {name: [seconds]}."""
    for step in steps.values():
        for _ in range(3):
            step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def quartiles(values):
    return statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3


def benchmark(name, task, options):
    """The rows of one network and task, a dict per contender."""
    built = {key: make_step(NETWORKS[name], conv, task, options) for key, conv in contenders(options.modes).items()}
    seconds = measure({key: step for key, (step, *_) in built.items()}, options.rounds, options.device)
    rows = []
    dense_macs = counting.macs_inference(built["dense"][1], (3, 32, 32))
    for key, (_, model, loss) in built.items():
        ratios = [dense / ours for dense, ours in zip(seconds["dense"], seconds[key], strict=True)]
        low, median, high = quartiles(ratios)
        row = {
            "network": name,
            "task": task,
            "contender": key,
            "milliseconds": 1e3 * statistics.median(seconds[key]),
            "images_per_second": TASKS[task] / statistics.median(seconds[key]),
            "ratio": median,
            "ratio_quartiles": [low, high],
            "mac_limit": dense_macs / counting.macs_inference(model, (3, 32, 32)),
        }
        if task.startswith("train"):
            row["kept_bytes"] = kept_bytes(loss, model)
            row["optimizer_bytes"] = 8 * counting.count_parameters(model)
        if options.device == "cuda":
            row["peak_bytes"] = peak_bytes(built[key][0])
        rows.append(row)
    return rows


def peak_bytes(step):
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def markdown(rows):
    """Ratios to dense: a line per network and contender, a column per task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [
        f"| network | contender | {' | '.join(tasks)} | multiply-add limit |",
        f"| --- | --- | {' | '.join('---:' for _ in tasks)} | ---: |",
    ]
    cells = {(row["network"], row["contender"], row["task"]): row for row in rows}
    for network, contender in dict.fromkeys((row["network"], row["contender"]) for row in rows):
        found = [cells.get((network, contender, task)) for task in tasks]
        ratios = [f"{row['ratio']:.2f}" if row else "" for row in found]
        limit = next(row for row in found if row)["mac_limit"]
        lines.append(f"| {network} | {contender} | {' | '.join(ratios)} | {limit:.2f} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=15, help="turns that are timed (default: 15)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every contender")
    parser.add_argument("--output", type=Path, help="default: results/speed_<device>_<precision>.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    output = options.output or ROOT / "results" / f"speed_{options.device}_{options.precision}.json"
    rows = []
    for network in options.networks:
        for task in options.tasks:
            rows += benchmark(network, task, options)
            print(f"{network}, {task}: ", end="")
            print(", ".join(f"{row['contender']} {row['ratio']:.2f}" for row in rows if row["task"] == task
                            and row["network"] == network), flush=True)  # fmt: skip
            write_json(output, {"origin": origin(options), "rows": rows})
    print("\n".join(markdown(rows)))


def origin(options):
    cpu = platform.processor() or platform.machine()
    return {
        "command": "python benchmarks/speed.py " + " ".join(sys.argv[1:]),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        "memory_format": "channels_last",
        "precision": options.precision,
    }


if __name__ == "__main__":
    main()
