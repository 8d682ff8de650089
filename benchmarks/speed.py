"""Speed and memory of a training step: LinearConv compared with nn.Conv2d.

    python -m benchmarks.speed                                  # all networks; about half an hour
    python -m benchmarks.speed --networks VGG11 --seconds 60    # one network, more rounds
    python -m benchmarks.speed --precision bfloat16
    python -m benchmarks.speed --device cuda --graphs           # each step is captured in a CUDA graph and replayed

A step is the forward pass, the backward pass and fused Adam, in channels_last. The contenders take turns, so that
changes of the machine's speed affect all of them. The contenders are `dense` (nn.Conv2d), LinearConv with full rank and
with rank 10, and full rank as in the paper, which builds all filters in every pass. Each run of this command adds a
sitting to results/speed_<device>_<precision>[_graphs].json. Tables show the median over sittings and their range.
"""

import gc
import itertools
import os
import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.contenders import CONTENDERS, FOR_GPUS, IMAGE, NETWORKS, TASKS, TRAINING
from benchmarks.measuring import (
    TUNABLES,
    add_sitting,
    command_line,
    compare,
    keep_freed_memory,
    kept_bytes,
    measure,
    peak_bytes,
)
from corr_reg import corr_loss, l1_loss
from linearconv import LinearConv
from linearconv_sparse import schedule_pruning
from training import counting
from training.objective import REGULARISE_EVERY
from training.report import ROOT

SCHEDULED_STEPS = 1000  # steps of the pruning schedule: every 6th step chooses a new mask


def make_step(
    model: nn.Module, task: str, options: Namespace
) -> tuple[Callable[[], None], Callable[[], torch.Tensor] | None]:
    """Return a function that runs a training step or an inference pass, and for training the loss function.

    Args:
        model: the network, which is moved to the device and to channels_last.
        task: one of `TASKS`.
        options: `device`, `precision` (`"float32"` or `"bfloat16"` by autocast) and `graphs`.
    """
    model.to(options.device, memory_format=torch.channels_last)
    images = torch.randn(TASKS[task], *IMAGE, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(images), device=options.device) % 10
    autocast = partial(torch.autocast, options.device, torch.bfloat16, enabled=options.precision == "bfloat16")
    if task not in TRAINING:
        model.eval()

        @torch.inference_mode()
        def infer():
            with autocast():
                model(images)

        return infer, None

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=options.graphs)
    schedule_pruning(model, optimizer, SCHEDULED_STEPS, begin=0)

    def loss():
        with autocast():
            return F.cross_entropy(model(images), labels)

    def train():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return train, loss


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step in a CUDA graph, and return the function that replays the graph."""
    side = torch.cuda.Stream()  # warm-up steps run on a side stream, as the capture requires
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def regulariser_seconds(model: nn.Module, options: Namespace) -> float:
    """Return the seconds that the regularisers add to a mean step: a tenth of their forward and backward pass."""

    def step():
        (0.01 * (corr_loss(model) + l1_loss(model))).backward()

    if not any(isinstance(layer, LinearConv) for layer in model.modules()):
        return 0.0
    seconds = measure({"regularisers": step}, min(1, options.seconds / 20), options.device)["regularisers"]
    return statistics.median(seconds) / REGULARISE_EVERY


def benchmark(network: str, task: str, options: Namespace) -> list[dict]:
    """Return one row for each contender of a network and task."""
    models, steps, losses = {}, {}, {}
    for name, conv in CONTENDERS.items():
        torch.manual_seed(0)
        models[name] = NETWORKS[network](conv=conv)
        step, losses[name] = make_step(models[name], task, options)
        steps[name] = captured(step) if options.graphs else step
    compared = compare(steps, options.seconds, options.device)
    dense_macs = counting.macs_inference(models["dense"], IMAGE)
    rows = []
    for name, model in models.items():
        row = {"network": network, "task": task, "contender": name, **compared[name]}
        seconds = row["milliseconds"] / 1e3
        row["images_per_second"] = TASKS[task] / seconds
        row["mac_limit"] = dense_macs / counting.macs_inference(model, IMAGE)
        row["kept_bytes"] = kept_bytes(losses[name], model)
        row["peak_bytes"] = peak_bytes(steps[name], options.device)
        row["regulariser_share"] = regulariser_seconds(model, options) / seconds
        rows.append(row)
    return rows


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--tasks", nargs="+", choices=TRAINING, help="default: 50 and 256 images; on a GPU 1024 too")
    add("--seconds", type=float, default=20, help="time for each network and task (default: 20)")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--graphs", action="store_true", help="capture each step in a CUDA graph")
    add("--output", type=Path, help="default: results/speed_<device>_<precision>[_graphs].json")
    options = parser.parse_args()
    if options.graphs and options.device != "cuda":
        parser.error("--graphs needs --device cuda")
    tasks = options.tasks or [task for task in TRAINING if options.device == "cuda" or task not in FOR_GPUS]
    name = f"speed_{options.device}_{options.precision}{'_graphs' if options.graphs else ''}.json"
    rows = []
    for network, task in itertools.product(options.networks, tasks):
        gc.collect()  # frees the networks of the previous round
        new = benchmark(network, task, options)
        print(f"{network}, {task}: " + ", ".join(f"{row['contender']} {row['ratio']:.2f}" for row in new), flush=True)
        rows += new
    conditions = {"memory_format": "channels_last", TUNABLES: os.environ.get(TUNABLES)}
    add_sitting(options.output or ROOT / "results" / name, rows, options.device, conditions)


if __name__ == "__main__":
    keep_freed_memory()
    main()
