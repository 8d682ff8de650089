"""Sizes and speeds of deployed networks: ONNX files of the dense network and of both forms of the converted one.

    python benchmarks/deployment.py                       # VGG11, ResNet18, Base; a few minutes
    python benchmarks/deployment.py --networks VGG11 --seconds 30

Each network, with random weights, is converted to full rank and exported dense, in the features form and folded;
onnxruntime runs the three files in turns, on as many threads as torch uses. Needs onnx, onnxscript and onnxruntime.
Writes results/deployment_cpu.json and prints its table.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

import onnxruntime
import torch

from benchmarks.measuring import measure, origin, quartiles
from benchmarks.speed import NETWORKS
from linearconv_convert import convert, export
from linearconv_convert.exporting import onnx_runner
from training.files import write_json

BATCHES = (1, 50)


def benchmark(name, seconds):
    """The rows of one network: a dict per file and batch."""
    torch.manual_seed(0)
    dense = NETWORKS[name]().eval()
    small = convert(dense, "rank")
    images = {batch: torch.randn(batch, 3, 32, 32) for batch in BATCHES}
    rows, runs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for called, model in (("dense", dense), ("features", small), ("folded", small)):
            path = Path(folder) / f"{called}.onnx"
            exported = export(model, path, images[1], "features" if called == "features" else "folded")
            runs[called] = onnx_runner(path), exported.bytes
        for batch in BATCHES:
            steps = {called: lambda run=run, batch=batch: run(images[batch]) for called, (run, _) in runs.items()}
            taken = measure(steps, seconds, "cpu")
            for called, values in taken.items():
                ratios = [dense_seconds / ours for dense_seconds, ours in zip(taken["dense"], values, strict=True)]
                low, median, high = quartiles(ratios)
                rows.append({"network": name, "batch": batch, "file": called, "bytes": runs[called][1],
                             "milliseconds": 1e3 * statistics.median(values), "ratio": median,
                             "ratio_quartiles": [low, high], "rounds": len(ratios)})  # fmt: skip
    return rows


def markdown(rows):
    """A line per network and file: size, and for each batch milliseconds and the ratio of speeds to dense."""
    titles = " | ".join(f"batch of {batch}" for batch in BATCHES)
    lines = [f"| network | file | MB | {titles} |", "| --- | --- | ---: |" + " ---: |" * len(BATCHES)]
    cells = {(row["network"], row["file"], row["batch"]): row for row in rows}
    for network, file in dict.fromkeys((row["network"], row["file"]) for row in rows):
        found = [cells[network, file, batch] for batch in BATCHES]
        shown = [f"{row['milliseconds']:.2f} ms ({row['ratio']:.2f})" for row in found]
        lines.append(f"| {network} | {file} | {found[0]['bytes'] / 1e6:.2f} | {' | '.join(shown)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["VGG11", "ResNet18", "Base"])
    parser.add_argument("--seconds", type=float, default=15, help="a network and batch is timed for (default: 15)")
    options = parser.parse_args()
    options.device = "cpu"
    rows = []
    for name in options.networks:
        rows += benchmark(name, options.seconds)
        print(f"{name}: measured", flush=True)
    record = {"origin": origin(options, "deployment.py"), "onnxruntime": onnxruntime.__version__, "rows": rows}
    write_json(ROOT / "results" / "deployment_cpu.json", record)
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
