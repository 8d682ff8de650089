"""What a run says of itself: the counts printed first, the outcome printed last, and report.json."""

import shlex
import subprocess
import sys
from pathlib import Path

import torch

from training import counting
from training.options import describe_variant

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (  # title, key of the network, key of its dense counterpart
    ("parameters", "parameters", "dense_parameters"),
    ("FLOPs, the paper's convention", "flops_paper", "flops_paper_dense"),
    ("FLOPs, thop", "flops", "flops_dense"),
    ("multiply-adds at inference", "macs_inference", "macs_dense"),
)


def count_against_dense(model, dense, input_size):
    """The counts of `counting.count` for a network, and those of its dense counterpart under the keys of COUNTS."""
    counts = counting.count(model, input_size)
    of_dense = counting.count(dense, input_size)
    return counts | {dense_key: of_dense[key] for _, key, dense_key in COUNTS}


def print_counts(options, counts, input_size, classes):
    """Print network, variant and counts: the first lines of every run."""
    print(f"{options.network}: {describe_variant(options)}; input {'x'.join(map(str, input_size))}, {classes} classes")
    for title, key, dense_key in COUNTS:
        ours, dense = counts[key], counts[dense_key]
        short = f"{ours / 1e6:.2f} M" if key == "parameters" else f"{ours / 1e9:.3f} B"
        print(f"  {title:30s}{ours:>15,} = {short:9s}  (dense {dense:,}; {100 * ours / dense:.1f} %)")
    sys.stdout.flush()


def print_outcome(record, path):
    """Print accuracies, time and speed, and where the report lies: the last lines of every run."""
    print(
        f"test accuracy {record['test_accuracy']:.2f} % after epoch {record['epochs']}, "
        f"best {record['best_test_accuracy']:.2f} % after epoch {record['best_epoch']}"
    )
    print(f"{record['seconds']:.0f} s, {record['images_per_second']:.0f} images/s in training")
    print(f"report: {path}")


def start(options, counts, classes):
    """What report.json holds before anything is trained: the setting, the counts, and what they were made with."""
    names = ("type", "rank", "sparsity", "alpha", "width", "compute", "dataset", "seed", "amp", "compile")
    return {
        "architecture": options.network,
        **{name: getattr(options, name) for name in names},
        "num_classes": classes,
        **counts,
        "device": _device_name(options.device),
        "torch": str(torch.__version__),
        "git_commit": _git_commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def _device_name(device):
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


def _git_commit():
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10)
        return git.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
