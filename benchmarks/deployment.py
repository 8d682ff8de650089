"""Speed and size at inference: LinearConv layers, `deploy`, and onnxruntime, compared with the dense network.

    python -m benchmarks.deployment                                   # five networks; a quarter of an hour
    python -m benchmarks.deployment --networks VGG11 --seconds 10
    python -m benchmarks.deployment --precision bfloat16              # without onnxruntime

The networks have random weights, full rank and the channels_last format. onnxruntime and torch use the same number of
threads. The contenders take turns: `dense` (nn.Conv2d and BatchNorm), `dense, folded` (BatchNorm folded into the
convolutions), `layers` (LinearConv as trained), `as in the paper` (all filters built in every pass), `deployed`
(linearconv_convert.deploy), and the ONNX files of the dense and of the deployed network. Each run of this command adds
a sitting to results/deployment_cpu_<precision>.json. Tables show the median over sittings and their range.
"""

import os
import tempfile
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn as nn

from benchmarks.contenders import IMAGE, INFERENCE, NETWORKS, as_in_the_paper
from benchmarks.measuring import TUNABLES, add_sitting, command_line, compare, keep_freed_memory
from benchmarks.speed import make_step
from linearconv import LinearConv
from linearconv_convert import ConversionError, deploy, export
from linearconv_convert.exporting import onnx_runner
from training.report import ROOT

DEFAULT_NETWORKS = ("VGG11", "ResNet18", "AllConv", "Base", "MobileNetV2")
BATCHES = {task: batch for task, batch in INFERENCE.items() if batch <= 256}
ONNX = ("dense", "deployed")  # networks that onnxruntime runs too


def contenders(network: str) -> dict[str, nn.Module]:
    """Return the networks that torch runs, {name: network}, in eval mode."""
    torch.manual_seed(0)
    dense, ours = NETWORKS[network]().eval(), NETWORKS[network](conv=LinearConv).eval()
    paper = NETWORKS[network](conv=as_in_the_paper).eval()
    return {
        "dense": dense,
        "dense, folded": deploy(dense),
        "layers": ours,
        "as in the paper": paper,
        "deployed": deploy(ours),
    }


def benchmark(network: str, options: Namespace) -> list[dict]:
    """Return one row for each batch size and contender of a network."""
    models = contenders(network)
    if options.precision == "bfloat16":  # autocast casts the other networks in every pass
        for name in ("dense, folded", "deployed"):
            models[name].to(torch.bfloat16)
    runners, sizes = {}, {name: weight_bytes(model) for name, model in models.items()}
    if options.precision == "float32":
        for name in ONNX:
            called = f"{name}, onnxruntime"
            runners[called], sizes[called] = in_onnxruntime(models[name])
    rows = []
    for task, batch in BATCHES.items():
        images = torch.randn(batch, *IMAGE)
        steps = {name: make_step(model, task, options)[0] for name, model in models.items()}
        for name, run in runners.items():
            steps[name] = lambda run=run, images=images: run(images)
        for name, row in compare(steps, options.seconds, "cpu").items():
            rows.append({"network": network, "task": task, "contender": name, "bytes": sizes[name], **row})
    return rows


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def in_onnxruntime(model: nn.Module) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """Return a function that runs a model in onnxruntime, and the bytes of its ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        exported = export(model, path, torch.randn(2, *IMAGE))
        return onnx_runner(path), exported.bytes


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(DEFAULT_NETWORKS))
    add("--seconds", type=float, default=10, help="time for each network and batch size (default: 10)")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--output", type=Path, help="default: results/deployment_cpu_<precision>.json")
    options = parser.parse_args()
    options.graphs = False
    rows = []
    for network in options.networks:
        try:
            new = benchmark(network, options)
        except ConversionError as error:  # the packages for ONNX are missing
            parser.error(error)
        rows += new
        for task in BATCHES:
            shown = [f"{row['contender']} {row['ratio']:.2f}" for row in new if row["task"] == task]
            print(f"{network}, {task}: {', '.join(shown)}", flush=True)
    conditions = {"onnxruntime": version("onnxruntime"), TUNABLES: os.environ.get(TUNABLES)}
    output = options.output or ROOT / "results" / f"deployment_cpu_{options.precision}.json"
    add_sitting(output, rows, options.device, conditions)


if __name__ == "__main__":
    keep_freed_memory()
    main()
