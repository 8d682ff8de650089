"""Sizes and speeds of deployed networks: ONNX files of the dense network and of both forms of the converted one.

    python -m benchmarks.deployment                       # VGG11, ResNet18, Base; a few minutes
    python -m benchmarks.deployment --networks VGG11 --seconds 30

Each network, with random weights, is converted to full rank and exported dense, in the features form and folded;
onnxruntime runs the three files in turns, on as many threads as torch uses. Needs onnx, onnxscript and onnxruntime.
Writes results/deployment_cpu.json and prints its table.
"""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.contenders import IMAGE, NETWORKS
from benchmarks.measuring import compare
from linearconv_convert import ConversionError, convert, export
from linearconv_convert.exporting import onnx_runner
from linearconv_variants import OneLineParser
from training.checkpoints import write_json
from training.report import ROOT, origin

BATCHES = (1, 50)


def benchmark(name: str, seconds: float) -> list[dict]:
    """Return a row per file and batch for one network, each batch timed for `seconds`."""
    torch.manual_seed(0)
    dense = NETWORKS[name]().eval()
    small = convert(dense, "rank")
    images = {batch: torch.randn(batch, *IMAGE) for batch in BATCHES}
    rows, runs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for called, model in (("dense", dense), ("features", small), ("folded", small)):
            path = Path(folder) / f"{called}.onnx"
            exported = export(model, path, images[1], "features" if called == "features" else "folded")
            runs[called] = onnx_runner(path), exported.bytes
        for batch in BATCHES:
            steps = {called: lambda run=run, batch=batch: run(images[batch]) for called, (run, _) in runs.items()}
            for called, row in compare(steps, seconds, "cpu").items():
                rows.append({"network": name, "batch": batch, "file": called, "bytes": runs[called][1], **row})
    return rows


def markdown(rows: Sequence[dict]) -> list[str]:
    """Return the table: a line per network and file, for each batch milliseconds and the ratio of speeds to dense."""
    titles = " | ".join(f"batch of {batch}" for batch in BATCHES)
    lines = [f"| network | file | MB | {titles} |", "| --- | --- | ---: |" + " ---: |" * len(BATCHES)]
    cells = {(row["network"], row["file"], row["batch"]): row for row in rows}
    for network, file in dict.fromkeys((row["network"], row["file"]) for row in rows):
        found = [cells[network, file, batch] for batch in BATCHES]
        shown = [f"{row['milliseconds']:.2f} ms ({row['ratio']:.2f})" for row in found]
        lines.append(f"| {network} | {file} | {found[0]['bytes'] / 1e6:.2f} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Measure what the command line asks for."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["VGG11", "ResNet18", "Base"])
    parser.add_argument("--seconds", type=float, default=15, help="a network and batch is timed for (default: 15)")
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        try:
            rows += benchmark(name, options.seconds)
        except ConversionError as error:  # without the packages that it needs
            parser.error(error)
        print(f"{name}: measured", flush=True)
    record = {"origin": origin(), "onnxruntime": version("onnxruntime"), "rows": rows}
    write_json(ROOT / "results" / "deployment_cpu.json", record)
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
