"""How the benchmarks measure: contenders in turns, memory of a step, and where a result comes from."""

import os
import platform
import statistics
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

SHORTEST_TURN = 0.02  # seconds
LEAST_ROUNDS, MOST_ROUNDS = 3, 200


def measure(steps, seconds, device):
    """Seconds of every contender, turn by turn, for about `seconds` in all: {name: [seconds]}."""
    for step in steps.values():
        step()
    _take_turns(steps, device)
    start = time.perf_counter()
    turns = [_take_turns(steps, device)]
    rounds = int(seconds / (time.perf_counter() - start))
    turns += [_take_turns(steps, device) for _ in range(min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS) - 1)]
    return {name: [turn[name] for turn in turns] for name in steps}


def _take_turns(steps, device):
    """Seconds of one step of each contender. Short steps are repeated: one image alone would find no code or weight
    in the processor's caches, which the other contenders have filled."""
    seconds = {}
    for name, step in steps.items():
        taken, start = 0, time.perf_counter()
        while taken == 0 or time.perf_counter() - start < SHORTEST_TURN:
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken += 1
        seconds[name] = (time.perf_counter() - start) / taken
    return seconds


def quartiles(values):
    return statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3


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


def peak_bytes(step, device):
    """Most bytes that stand allocated during a step, beyond those from before it."""
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


def origin(options, script="speed.py"):
    """Where a result comes from: the command, the versions, the machine."""
    on_gpu = options.device == "cuda"
    return {
        "command": " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
