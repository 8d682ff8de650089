"""The output of a run: counts, final accuracies, and report.json."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn as nn

from images.info import one_line
from training import counting
from training.errors import UsageError
from training.options import Options

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (  # title, key of the network, key of its dense counterpart
    ("parameters", "parameters", "dense_parameters"),
    ("FLOPs, the paper's convention", "flops_paper", "flops_paper_dense"),
    ("FLOPs, thop", "flops", "flops_dense"),
    ("multiply-adds at inference", "macs_inference", "macs_dense"),
)


def count_against_dense(model: nn.Module, dense: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Return the counts of a network and of its dense counterpart, or raise a UsageError if the images do not fit."""
    try:
        counts, of_dense = counting.count(model, input_size), counting.count(dense, input_size)
    except (RuntimeError, ValueError, AssertionError) as error:  # networks raise these for unsuitable images
        size = "x".join(map(str, input_size))
        raise UsageError(f"the network does not take {size} images: {one_line(error)}") from None
    return counts | {dense_key: of_dense[key] for _, key, dense_key in COUNTS}


def make_report(options: Options, counts: dict[str, int], num_classes: int, device: torch.device) -> dict[str, object]:
    """Return the first part of report.json: options, counts, versions and machine; recipe and accuracies follow."""
    variant = options.variant
    return {
        "architecture": options.network,
        **{name: getattr(variant, name) for name in ("type", "rank", "sparsity", "alpha")},
        "width": options.width,
        "compute": variant.compute,
        **options.pick("dataset", "recipe", "validation", "seed", "amp", "compile"),
        "num_classes": num_classes,
        **counts,
        **origin(device),
    }


def origin(device: str | torch.device = "cpu") -> dict[str, object]:
    """Return the origin of a result: command, commit, versions and machine."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "command": _command(),
        "git_commit": _git_commit(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "machine": platform.machine(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _command():
    """Return the command line as a user would type it in the root of the repository."""
    program, *arguments = sys.argv
    path = Path(program).resolve()
    if not path.is_relative_to(ROOT):
        return shlex.join(["python", *sys.argv])
    path = path.relative_to(ROOT)
    is_script = path.parent.name == "models" or path.suffix != ".py"
    called = [str(path)] if is_script else ["-m", ".".join(path.with_suffix("").parts).removesuffix(".__main__")]
    return shlex.join(["python", *called, *arguments])


def _git_commit():
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10)
        return git.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def show_counts(title: str, counts: dict[str, int], input_size: tuple[int, int, int], num_classes: int) -> None:
    """Print the title (network and variant) and the counts: the first lines of every run."""
    size = "x".join(map(str, input_size))
    print(f"{title}; input {size}, {num_classes} classes")
    for title, key, dense_key in COUNTS:
        ours, dense = counts[key], counts[dense_key]
        short = f"{ours / 1e6:.2f} M" if key == "parameters" else f"{ours / 1e9:.3f} B"
        print(f"  {title:30s}{ours:>15,} = {short:9s}  {ours / dense:.2f} times dense ({dense:,})")
    if counts["flops_paper"] > counts["flops_paper_dense"]:
        print("  The paper's convention counts the building of all filters, in every forward pass: docs/counts.md.")
    sys.stdout.flush()


def show_outcome(report: dict, path: Path) -> None:
    """Print accuracies, time, speed and the path of the report: the last lines of every run."""
    held_out = f" (on {report['validation']} training images held out)" if report["validation"] else ""
    print(
        f"test accuracy{held_out} "
        "{test_accuracy:.2f} % after epoch {epochs}, best {best_test_accuracy:.2f} % after epoch "
        "{best_epoch}\n{seconds:.0f} s, {images_per_second:.0f} images/s in training".format(**report)
    )
    print(f"report: {path}")
