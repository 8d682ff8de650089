"""Measurement for the benchmarks: contenders in turns, the memory of a step, and results over several sittings."""

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from linearconv_variants import OneLineParser
from training.checkpoints import write_json
from training.markdown import markdown_table
from training.report import origin

SHORTEST_TURN = 0.02  # seconds
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
MUCH = 0.3  # share of the machine's memory
TUNABLES = "GLIBC_TUNABLES"
KEEPING = "glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=8000000000"  # bytes


def keep_freed_memory() -> None:
    """Restart this process with settings of glibc that keep freed memory for later allocations.

    glibc returns large blocks to the system, and the system zeroes each new page. This takes a third of the time of
    some networks on a CPU. glibc also adapts the threshold for large blocks, so the time depends on earlier
    allocations. If GLIBC_TUNABLES is set, or the C library is not glibc, the function does nothing.
    """
    if platform.libc_ver()[0] == "glibc" and TUNABLES not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {TUNABLES: KEEPING})


def command_line(description: str) -> OneLineParser:
    """Return a parser with the option --device, cpu or cuda."""
    parser = OneLineParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda (default: cpu)")
    return parser


def _device(name):
    if name not in ("cpu", "cuda"):
        raise ArgumentTypeError(f"must be cpu or cuda, got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentTypeError("torch finds no CUDA device")
    return name


def compare(steps: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, dict[str, object]]:
    """Measure contenders in turns, and compare their speeds with the speed of `dense` in the same turn.

    Args:
        steps: {name: function to time}, including `dense`.
        seconds: approximate total time.
        device: device of the steps.

    Returns:
        For each name the median `milliseconds`, the median `ratio` of speeds (above 1: faster than dense), the first
        and third quartile `ratio_quartiles`, and the number of turns `rounds`.
    """
    taken = measure(steps, seconds, device)
    compared = {}
    for name, values in taken.items():
        ratios = [dense / ours for dense, ours in zip(taken["dense"], values, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        compared[name] = {
            "milliseconds": 1e3 * statistics.median(values),
            "rounds": len(ratios),
            "ratio": median,
            "ratio_quartiles": [low, high],
        }
    return compared


def measure(steps: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, list[float]]:
    """Return the seconds of each contender in each turn, measured for about `seconds` in total.

    Freed memory that glibc keeps is fragmented, as its blocks have many sizes. After a few turns every contender finds
    the blocks that it needs. For steps that use much of the machine's memory, each turn starts without kept memory.
    """
    takes_much = False
    for step in steps.values():
        give_back_memory()
        step()
        takes_much |= memory_held() > MUCH
    for _ in range(0 if takes_much else 2):
        _take_turns(steps, device)
    start = time.perf_counter()
    turns = [_take_turns(steps, device, takes_much)]
    rounds = int(seconds / (time.perf_counter() - start))
    turns += [_take_turns(steps, device, takes_much) for _ in range(min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS) - 1)]
    return {name: [turn[name] for turn in turns] for name in steps}


def memory_held() -> float:
    """Return the share of the machine's memory that this process holds, or 0 if the system does not report it."""
    if not sys.platform.startswith("linux"):
        return 0.0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / os.sysconf("SC_PHYS_PAGES")


def give_back_memory() -> None:
    """Return the memory kept by `keep_freed_memory` to the system."""
    if KEEPING in os.environ.get(TUNABLES, ""):
        ctypes.CDLL(None).malloc_trim(0)


def _take_turns(steps, device, without_gaps=False):
    """The seconds of one step of each contender.

    Short steps are repeated. Otherwise a step with one image would find neither code nor weights in the processor's
    caches, which the other contenders have filled.
    """
    seconds = {}
    for name, step in steps.items():
        if without_gaps:
            give_back_memory()
            step()
        taken, start = 0, time.perf_counter()
        while taken == 0 or time.perf_counter() - start < SHORTEST_TURN:
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken += 1
        seconds[name] = (time.perf_counter() - start) / taken
    return seconds


def kept_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes of storage that autograd keeps for a backward pass of `loss()`, excluding parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss().backward()
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Return the peak of the bytes allocated during a step, excluding earlier allocations."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def add_sitting(path: Path, rows: Sequence[dict], device: str, conditions: dict[str, object]) -> None:
    """Add the rows of one benchmark run to a result file `{"sittings": [...]}`, which is rewritten.

    Args:
        path: path of the result file.
        rows: one row for each `network`, `task` and `contender`, with the `ratio` of speeds to `dense`.
        device: device of the measurement.
        conditions: other conditions of the measurement.
    """
    sittings = json.loads(path.read_text())["sittings"] if path.exists() else []
    ended = datetime.now(timezone.utc).isoformat(timespec="minutes")
    sittings.append({"ended": ended, "origin": origin(device), **conditions, "rows": list(rows)})
    write_json(path, {"sittings": sittings})


def ratios_over_sittings(record: dict) -> dict[tuple[str, str, str], list[float]]:
    """Return {(network, task, contender): sorted ratios of speeds to dense, one for each sitting}."""
    ratios = {}
    for sitting in record["sittings"]:
        for row in sitting["rows"]:
            ratios.setdefault((row["network"], row["task"], row["contender"]), []).append(row["ratio"])
    return {key: sorted(values) for key, values in ratios.items()}


def markdown(record: dict) -> list[str]:
    """Return a table of ratios to dense: the median over sittings, with the range in parentheses."""
    ratios = ratios_over_sittings(record)
    tasks = list(dict.fromkeys(task for _, task, _ in ratios))
    rows = []
    for network, contender in dict.fromkeys((network, contender) for network, _, contender in ratios):
        if contender != "dense":
            rows.append([network, contender, *(_cell(ratios.get((network, task, contender))) for task in tasks)])
    return markdown_table(["network", "contender", *tasks], rows, left=2)


def _cell(ratios):
    if ratios is None:
        return ""
    median = f"{statistics.median(ratios):.2f}"
    return median if len(ratios) == 1 else f"{median} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
