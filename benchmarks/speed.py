"""Speed of a training step: LinearConv compared with nn.Conv2d.

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
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.contenders import CONTENDERS, IMAGE, NETWORKS, TASKS, TRAINING
from benchmarks.measuring import add_network_options, add_sitting, command_line, compare, show
from linearconv_sparse import schedule_pruning
from training.memory import keep_freed_memory
from training.report import ROOT

SCHEDULED_STEPS = 1000  # steps of the pruning schedule: every 6th step chooses a new mask


def make_step(model: nn.Module, task: str, options: Namespace) -> Callable[[], None]:
    """Return a function that runs a training step or an inference pass.

    Args:
        model: the network, which is moved to the device and to channels_last.
        task: one of `TASKS`.
        options: `device` and `precision` (`"float32"`, or `"bfloat16"` by autocast).
    """
    model.to(options.device, memory_format=torch.channels_last).train(task in TRAINING)
    images = torch.randn(TASKS[task], *IMAGE, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(images), device=options.device) % 10
    autocast = partial(torch.autocast, options.device, torch.bfloat16, enabled=options.precision == "bfloat16")

    def infer():
        with torch.inference_mode(), autocast():
            model(images)

    if task not in TRAINING:
        return infer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=options.device == "cuda")
    schedule_pruning(model, optimizer, SCHEDULED_STEPS, begin=0)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return train


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


def benchmark(network: str, builds: dict[str, Callable[[], nn.Module]], task: str, options: Namespace) -> list[dict]:
    """Return one row for each contender of a network and task; `builds` has their constructors."""
    gc.collect()  # frees the networks of the previous round
    steps = {}
    for name, build in builds.items():
        torch.manual_seed(0)
        step = make_step(build(), task, options)
        steps[name] = captured(step) if options.graphs else step
    rows = []
    for name, measured in compare(steps, options.seconds, options.device).items():
        speed = 1e3 * TASKS[task] / measured["milliseconds"]
        rows.append({"network": network, "task": task, "contender": name, "images_per_second": speed, **measured})
    show(rows)
    return rows


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    add_network_options(parser, NETWORKS, NETWORKS, seconds=20)
    parser.add_argument("--tasks", nargs="+", choices=TRAINING, help="default: 50 and 256 images; on a GPU 1024 too")
    parser.add_argument("--graphs", action="store_true", help="capture each step in a CUDA graph")
    options = parser.parse_args()
    if options.graphs and options.device != "cuda":
        parser.error("--graphs needs --device cuda")
    tasks = options.tasks or list(TRAINING)[: 3 if options.device == "cuda" else 2]
    rows = []
    for network, task in itertools.product(options.networks, tasks):
        builds = {name: partial(NETWORKS[network], conv=conv) for name, conv in CONTENDERS.items()}
        rows += benchmark(network, builds, task, options)
    name = f"speed_{options.device}_{options.precision}{'_graphs' if options.graphs else ''}.json"
    add_sitting(options.output or ROOT / "results" / name, rows, options.device, memory_format="channels_last")


if __name__ == "__main__":
    keep_freed_memory()
    main()
