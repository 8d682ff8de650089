"""Measurement for the benchmarks: contenders in turns, and results over several sittings."""

import json
import os
import statistics
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from experiments.markdown import markdown_table
from linearconv_variants import OneLineParser, positive_float
from training.checkpoints import write_json
from training.memory import return_freed_memory
from training.report import origin

SHORTEST_TURN = 0.02  # seconds
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
LARGE_SHARE = 0.3  # of the machine's memory


def command_line(description: str) -> OneLineParser:
    """Return a parser with the option --device, cpu or cuda."""
    parser = OneLineParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    parser.add_argument("--device", choices=devices, default="cpu", help="cuda needs a GPU (default: cpu)")
    return parser


def add_network_options(parser: OneLineParser, networks: Sequence[str], usual: Sequence[str], seconds: float) -> None:
    """Add --networks (by default the `usual` ones), --seconds, --precision and --output."""
    add = parser.add_argument
    add("--networks", nargs="+", choices=networks, default=list(usual))
    about = "per network (or layer) and task (default: %(default)s)"
    add("--seconds", type=positive_float, default=seconds, help=about)
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--output", type=Path, help="default: a file in results/")


def compare(steps: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, dict[str, object]]:
    """Measure contenders in turns, and compare their speeds with the speed of `dense` in the same turn.

    Args:
        steps: {name: function to time}, including `dense`.
        seconds: approximate total time.

    Returns:
        For each name the median `milliseconds`, the median `ratio` of speeds (above 1: faster than dense), the first
        and third quartile `ratio_quartiles`, and the number of turns `rounds`.
    """
    taken = measure(steps, seconds, device)
    compared = {}
    for name, values in taken.items():
        ratios = [dense / ours for dense, ours in zip(taken["dense"], values, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1e3 * statistics.median(values)
        compared[name] = {"milliseconds": milliseconds, "rounds": len(ratios), "ratio": median}
        compared[name]["ratio_quartiles"] = [low, high]
    return compared


def measure(steps: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, list[float]]:
    """Return the seconds of each contender in each turn, measured for about `seconds` in total.

    Freed memory that glibc keeps is fragmented, as its blocks have many sizes. After a few turns every contender finds
    the blocks that it needs. For steps that use much of the machine's memory, each turn starts without kept memory.
    """
    is_large = False
    for step in steps.values():
        return_freed_memory()
        step()
        is_large |= memory_share() > LARGE_SHARE
    if not is_large:
        for _ in range(2):
            _take_turns(steps, device)
    start = time.perf_counter()
    turns = [_take_turns(steps, device, is_large)]
    rounds = int(seconds / (time.perf_counter() - start))
    for _ in range(min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS) - 1):
        turns.append(_take_turns(steps, device, is_large))
    return {name: [turn[name] for turn in turns] for name in steps}


def memory_share() -> float:
    """Return the share of the machine's memory that this process uses, or 0 if the system does not report it."""
    if not sys.platform.startswith("linux"):
        return 0.0
    return int(Path("/proc/self/statm").read_text().split()[1]) / os.sysconf("SC_PHYS_PAGES")


def _take_turns(steps, device, is_large=False):
    """The seconds of one step of each contender.

    Short steps are repeated. Otherwise a step with one image would find neither code nor weights in the processor's
    caches, which the other contenders have filled.
    """
    seconds = {}
    for name, step in steps.items():
        if is_large:
            return_freed_memory()
            step()
        taken, start = 0, time.perf_counter()
        while taken == 0 or time.perf_counter() - start < SHORTEST_TURN:
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken += 1
        seconds[name] = (time.perf_counter() - start) / taken
    return seconds


def show(rows: Sequence[dict]) -> None:
    """Print the ratios of the contenders of one network and task."""
    shown = [f"{row['contender']} {row['ratio']:.2f}" for row in rows]
    print(f"{rows[0]['network']}, {rows[0]['task']}: {', '.join(shown)}", flush=True)


def add_sitting(path: Path, rows: Sequence[dict], device: str, **conditions: object) -> None:
    """Add the rows of one benchmark run, with its conditions, to a result file `{"sittings": [...]}`.

    There is a row for each `network`, `task` and `contender`, with the `ratio` of speeds to `dense`.
    """
    sittings = json.loads(path.read_text())["sittings"] if path.exists() else []
    sitting = {"ended": datetime.now(timezone.utc).isoformat(timespec="minutes"), "origin": origin(device)}
    sitting |= {**conditions, "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"), "rows": list(rows)}
    write_json(path, {"sittings": [*sittings, sitting]})


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
    rows = {}
    for (network, task, contender), values in ratios.items():
        if contender != "dense":
            cells = rows.setdefault((network, contender), dict.fromkeys(tasks, ""))
            cells[task] = f"{statistics.median(values):.2f}"
            if len(values) > 1:
                cells[task] += f" ({values[0]:.2f} to {values[-1]:.2f})"
    lines = [[*key, *cells.values()] for key, cells in rows.items()]
    return markdown_table(["network", "contender", *tasks], lines, left=2)
