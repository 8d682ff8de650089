"""Speed and memory of LinearConv against nn.Conv2d, contender by contender in one run.

    python benchmarks/speed.py                                  # all networks, training and inference; under an hour
    python benchmarks/speed.py --networks VGG11 --seconds 120   # one of them, more rounds
    python benchmarks/speed.py --precision bfloat16 --device cuda
    python benchmarks/speed.py --readme                         # put all that was measured into README.md

The contenders take turns, step by step where a step takes 20 ms or more, else 20 ms at a time, so that a machine that
speeds up or slows down does so for all of them; what is reported is the median and the quartiles of the ratios to dense
within a turn. Contenders: `dense` (nn.Conv2d); `paper`,
the published way (all filters made at every pass); `filters`, `features` and `auto`, the modes of our layers; and where
tensorly-torch is installed its Tucker convolution of half the parameters, as what else there is.
Writes results/speed_<device>_<precision>.json and prints its tables.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from types import MethodType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.measuring import kept_bytes, measure, origin, peak_bytes, quartiles
from corr_reg import corr_loss, l1_loss
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse
from models.allconv_xcnn import AllConv
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from models.vgg_xcnn import VGG11
from training import counting
from training.files import write_json
from training.trainer import REGULARISE_EVERY

try:
    from tltorch import FactorizedConv
except ImportError:
    FactorizedConv = None

NETWORKS = {
    "VGG11": VGG11,
    "ResNet18": ResNet18,
    "AllConv": AllConv,
    "Base": Base,
    "MobileNetV2": MobileNetV2,
    "ResNeXt29": ResNeXt29_2x64d,
}
VARIANTS = {"full rank": LinearConv, "rank 10": partial(LinearConvLowRank, rank=10)}
OTHER_VARIANTS = {"half rank": partial(LinearConvRankRatio, rank=0.5), "sparse": LinearConvSparse}
TUCKER = "Tucker (tensorly-torch)"
MODES = ("paper", "filters", "features", "auto")
TASKS = {"train 50": 50, "infer 50": 50, "infer 1": 1, "infer 256": 256}
SHOWN = ("full rank, auto", "rank 10, auto", "full rank, paper")  # in README.md
MARKS = "<!-- benchmarks/speed.py --readme, {} -->", "<!-- end -->"  # {}: a file in results/


def contenders(modes, compiled):
    """Name and convolution of everything that is timed; the first is what the others are compared with."""
    convs = {"dense": nn.Conv2d}
    if compiled:
        ours = {f"full rank, auto{how}": LinearConv for how in ("", ", compiled")}
        return convs | {"dense, compiled": nn.Conv2d} | ours
    for name, conv in VARIANTS.items():
        convs |= {f"{name}, {mode}": partial(_paper, conv) if mode == "paper" else partial(conv, compute=mode)
                  for mode in modes}  # fmt: skip
    if "auto" in modes:
        convs |= {f"{name}, auto": conv for name, conv in OTHER_VARIANTS.items()}
    if FactorizedConv:
        convs[TUCKER] = _tucker
    return convs


def _paper(conv, *arguments, **keywords):
    """A LinearConv that is evaluated as published."""
    layer = conv(*arguments, compute="filters", **keywords)
    layer.forward = MethodType(_make_filters_and_convolve, layer)
    return layer


def _make_filters_and_convolve(layer, input):
    secondary = layer.conv_weights.flatten(1)
    for factor in reversed(layer.factors()):
        secondary = factor @ secondary
    secondary = secondary.view(-1, *layer.conv_weights.shape[1:])
    filters = torch.cat((layer.conv_weights, secondary))
    return F.conv2d(input, filters, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _tucker(in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1, bias=True):
    if groups > 1 or in_channels < 4:  # not supported, or nothing to save
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
    arguments = {"order": 2, "rank": 0.5, "factorization": "tucker", "implementation": "factorized"}
    layer = FactorizedConv(
        in_channels, out_channels, kernel_size, stride=stride, padding=padding, has_bias=bias, **arguments
    )
    layer.weight.normal_(0, 0.02)
    return layer


def make_step(network, conv, task, options, compiled):
    """A function that runs one training step or one inference pass, the network, and a function that gives its loss."""
    torch.manual_seed(0)
    device, batch = options.device, TASKS[task]
    model = network(conv=conv).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    autocast = partial(torch.autocast, options.device, torch.bfloat16, enabled=options.precision == "bfloat16")
    run = torch.compile(model) if compiled else model

    def loss():
        with autocast():
            return F.cross_entropy(run(images), labels)

    if task.startswith("train"):
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
    else:
        model.eval()

        @torch.inference_mode()
        def step():
            with autocast():
                run(images)

    return step, model, loss


def regulariser_seconds(model, device):
    """What corr_reg adds to the mean step: a tenth of its forward and backward pass."""

    def step():
        (0.01 * (corr_loss(model) + l1_loss(model))).backward()

    has_filters = any(isinstance(layer, LinearConv) for layer in model.modules())
    return statistics.median(measure({"": step}, 1, device)[""]) / REGULARISE_EVERY if has_filters else 0.0


def benchmark(name, task, options):
    """The rows of one network and task, a dict per contender."""
    built = {
        key: make_step(NETWORKS[name], conv, task, options, key.endswith("compiled"))
        for key, conv in contenders(options.modes, options.compile).items()
    }
    seconds = measure({key: step for key, (step, *_) in built.items()}, options.seconds, options.device)
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
            "rounds": len(ratios),
            "origin": origin(options),
            "images_per_second": TASKS[task] / statistics.median(seconds[key]),
            "ratio": median,
            "ratio_quartiles": [low, high],
        }
        if key != TUCKER:  # its layers are not known to the counts
            row["mac_limit"] = dense_macs / counting.macs_inference(model, (3, 32, 32))
        if task.startswith("train"):
            row["kept_bytes"] = kept_bytes(loss, model)
            row["optimizer_bytes"] = 8 * counting.count_parameters(model)
            row["regulariser_share"] = regulariser_seconds(model, options.device) / statistics.median(seconds[key])
        row["peak_bytes"] = peak_bytes(built[key][0], options.device)
        rows.append(row)
    return rows


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
        limit = next(row for row in found if row).get("mac_limit")
        lines.append(f"| {network} | {contender} | {' | '.join(ratios)} | {f'{limit:.2f}' if limit else ''} |")
    return lines


def place(row):
    """Where a row stands in the output file."""
    return list(NETWORKS).index(row["network"]), list(TASKS).index(row["task"])


def summary(rows):
    """A line per network: ratios to dense of `auto`, full rank / rank 10 (full rank in the paper's way)."""
    cells = {(row["network"], row["contender"], row["task"]): row for row in rows}
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    lines = [f"| network | {' | '.join(tasks)} | multiply-add limit | peak memory, train 50 |"]
    lines += ["| --- |" + " ---: |" * (len(tasks) + 2)]
    for network in dict.fromkeys(row["network"] for row in rows):
        shown = []
        for task in tasks:
            found = [cells.get((network, name, task)) for name in SHOWN]
            ratios = [f"{row['ratio']:.2f}" if row else "-" for row in found]
            shown.append("{} / {} ({})".format(*ratios))
        limits = [f"{cells[network, name, tasks[0]]['mac_limit']:.2f}" for name in SHOWN[:2]]
        dense = cells[network, "dense", "train 50"]["peak_bytes"]
        memory = [f"{cells[network, name, 'train 50']['peak_bytes'] / dense:.2f}" for name in SHOWN]
        shown += [" / ".join(limits), f"{memory[0]} / {memory[1]} ({memory[2]})"]
        lines.append(f"| {network} | {' | '.join(shown)} |")
    return "\n".join(lines)


def into_readme(text, results):
    """README's text with the tables of all results between their marks."""
    for path in sorted(results.glob("speed_*.json")):
        start = MARKS[0].format(path.name)
        if start in text:
            before, _, after = text.partition(start)
            table = summary(json.loads(path.read_text())["rows"])
            text = before + start + "\n" + table + "\n" + MARKS[1] + after.partition(MARKS[1])[2]
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seconds", type=float, default=45, help="a network and task are timed for (default: 45)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="dense and auto only, eager and compiled")
    parser.add_argument("--output", type=Path, help="default: results/speed_<device>_<precision>.json")
    parser.add_argument("--update", action="store_true", help="keep the output file's rows of other networks and tasks")
    parser.add_argument("--readme", action="store_true", help="measure nothing, put the result into README.md")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    name = f"speed_{options.device}_{options.precision}{'_compiled' if options.compile else ''}.json"
    output = options.output or ROOT / "results" / name
    if options.readme:
        readme = ROOT / "README.md"
        readme.write_text(into_readme(readme.read_text(), ROOT / "results"))
        return
    rows, kept = [], []
    if options.update:
        again = set(itertools.product(options.networks, options.tasks))
        kept = [row for row in json.loads(output.read_text())["rows"] if (row["network"], row["task"]) not in again]
    record = {"precision": options.precision, "memory_format": "channels_last"}
    for network in options.networks:
        for task in options.tasks:
            gc.collect()  # the networks before
            rows += benchmark(network, task, options)
            print(f"{network}, {task}: ", end="")
            print(", ".join(f"{row['contender']} {row['ratio']:.2f}" for row in rows if row["task"] == task
                            and row["network"] == network), flush=True)  # fmt: skip
            write_json(output, record | {"rows": sorted(rows + kept, key=place)})
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
