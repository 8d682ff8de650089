"""Speed and memory of LinearConv against nn.Conv2d, contender by contender in one run.

    python -m benchmarks.speed                                  # all networks, training and inference; under an hour
    python -m benchmarks.speed --networks VGG11 --seconds 120   # one of them, more rounds
    python -m benchmarks.speed --precision bfloat16 --device cuda --graphs
    python -m benchmarks.speed --readme                         # put all that was measured into the pages that show it

The contenders take turns, step by step where a step takes 20 ms or more, else 20 ms at a time, so that a machine that
speeds up or slows down does so for all of them; what is reported is the median and the quartiles of the ratios to dense
within a turn. Contenders: `dense` (nn.Conv2d); `paper`, the published way (all filters made at every pass); `filters`,
`features` and `auto`, the modes of our layers; and where tensorly-torch is installed its Tucker convolution of half the
parameters, as what else there is. Batches of 8 are inferred thrice: as the others are, with `eval()` before every pass,
and in 35 sizes by turns. With --graphs each step is captured in a CUDA graph and replayed, so that none of them waits
for Python. Writes results/speed_<device>_<precision>.json and prints its tables.
"""

import gc
import itertools
import json
import os
import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.contenders import (
    COMMON,
    CONDITIONS,
    IMAGE,
    LARGE,
    MANY_SIZES,
    MODES,
    NETWORKS,
    SIZES,
    TASKS,
    TUCKER,
    WITH_EVAL,
    contenders,
)
from benchmarks.measuring import TUNABLES, command_line, compare, keep_freed_memory, kept_bytes, measure, peak_bytes
from benchmarks.speed_table import into_readme, markdown
from corr_reg import corr_loss, l1_loss
from linearconv import LinearConv
from linearconv_sparse import schedule_pruning
from training import counting
from training.checkpoints import write_json
from training.objective import REGULARISE_EVERY
from training.report import ROOT, origin

SCHEDULED_STEPS = 1000  # of training: sparse layers are pruned from the first one on, every 6th chooses new masks


def make_step(
    network: Callable[..., nn.Module], conv: Callable[..., nn.Module], task: str, options: Namespace, compiled: bool
) -> tuple[Callable[[], None], nn.Module, Callable[[], torch.Tensor]]:
    """Return a function that runs one training step or inference pass, the network, and a function for its loss."""
    torch.manual_seed(0)
    device, batch = options.device, TASKS[task]
    model = network(conv=conv).to(device, memory_format=torch.channels_last)
    sizes = SIZES if task == MANY_SIZES else (IMAGE[1:],)
    batches = [torch.randn(batch, IMAGE[0], *size, device=device) for size in sizes]
    batches = [images.contiguous(memory_format=torch.channels_last) for images in batches]
    images, turns = batches[0], itertools.cycle(batches)
    labels = torch.arange(batch, device=device) % 10
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=options.precision == "bfloat16")
    run = torch.compile(model) if compiled else model

    def loss():
        with autocast():
            return F.cross_entropy(run(images), labels)

    if task.startswith("train"):
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=options.graphs)
        schedule_pruning(model, optimizer, SCHEDULED_STEPS, begin=0)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
    else:
        model.eval()

        @torch.inference_mode()
        def step():
            if task == WITH_EVAL:
                model.eval()
            with autocast():
                run(next(turns))

    return step, model, loss


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return the replay of a CUDA graph of a step."""
    side = torch.cuda.Stream()  # where capturing wants the steps before it to have been
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
    """Return what corr_reg adds to the mean step: a tenth of its forward and backward pass."""

    def step():
        (0.01 * (corr_loss(model) + l1_loss(model))).backward()

    has_filters = any(isinstance(layer, LinearConv) for layer in model.modules())
    if not has_filters:
        return 0.0
    return statistics.median(measure({"": step}, min(1, options.seconds / 20), options.device)[""]) / REGULARISE_EVERY


def benchmark(name: str, task: str, options: Namespace) -> list[dict]:
    """Return a row per contender for one network and task."""
    built = {
        key: make_step(NETWORKS[name], conv, task, options, key.endswith("compiled"))
        for key, conv in contenders(options.modes, options.compile, options.graphs).items()
    }
    steps = {key: captured(step) if options.graphs else step for key, (step, *_) in built.items()}
    compared = compare(steps, options.seconds, options.device)
    made_by, rows = origin(options.device), []
    dense_macs = counting.macs_inference(built["dense"][1], IMAGE)
    for key, (step, model, loss) in built.items():
        row = {"network": name, "task": task, "contender": key, **compared[key], "origin": made_by}
        seconds = row["milliseconds"] / 1e3
        row["images_per_second"] = TASKS[task] / seconds
        if key != TUCKER:  # its layers are not known to the counts
            row["mac_limit"] = dense_macs / counting.macs_inference(model, IMAGE)
        if task.startswith("train"):
            row["kept_bytes"] = kept_bytes(loss, model)
            row["optimizer_bytes"] = 8 * counting.count_parameters(model)
            row["regulariser_share"] = regulariser_seconds(model, options) / seconds
        row["peak_bytes"] = peak_bytes(step, options.device)
        rows.append(row)
    return rows


def main() -> None:
    """Measure what the command line asks for."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--tasks", nargs="+", choices=TASKS, help="default: those of up to 256 images, on a GPU all")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--seconds", type=float, default=45, help="a network and task is timed for (default: 45)")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--compile", action="store_true", help="dense and auto only, eager and compiled")
    add("--graphs", action="store_true", help="steps captured in CUDA graphs")
    add("--output", type=Path, help="default: results/speed_<device>_<precision>[_compiled|_graphs].json")
    add("--update", action="store_true", help="keep the output file's rows of other networks and tasks")
    add("--readme", action="store_true", help="measure nothing, put the results into README.md and docs/")
    options = parser.parse_args()
    if options.readme:
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            page.write_text(into_readme(page.read_text(), ROOT / "results"))
        return
    if options.graphs and options.device != "cuda":
        parser.error("--graphs goes with --device cuda")
    options.tasks = options.tasks or [*COMMON, *(LARGE if options.device == "cuda" else CONDITIONS)]
    kind = "_compiled" if options.compile else "_graphs" if options.graphs else ""
    name = f"speed_{options.device}_{options.precision}{kind}.json"
    output = options.output or ROOT / "results" / name
    rows, kept = [], []
    asked = list(itertools.product(options.networks, options.tasks))
    if options.update:
        old = json.loads(output.read_text())["rows"]
        kept = [row for row in old if (row["network"], row["task"]) not in asked]
    record = {"precision": options.precision, "memory_format": "channels_last", TUNABLES: os.environ.get(TUNABLES)}
    for network, task in asked:
        gc.collect()  # the networks before
        new = benchmark(network, task, options)
        print(f"{network}, {task}: " + ", ".join(f"{row['contender']} {row['ratio']:.2f}" for row in new), flush=True)
        rows += new
        write_json(output, record | {"rows": sorted(rows + kept, key=_place)})
    print("\n".join(markdown(rows)))


def _place(row):
    """Where a row stands in the output file."""
    return list(NETWORKS).index(row["network"]), list(TASKS).index(row["task"])


if __name__ == "__main__":
    keep_freed_memory()
    main()
