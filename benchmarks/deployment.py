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

import tempfile
from argparse import Namespace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn as nn

from benchmarks.contenders import IMAGE, INFERENCE, NETWORKS, AsInThePaper
from benchmarks.measuring import add_network_options, add_sitting, command_line, compare, show
from benchmarks.speed import make_step
from linearconv import LinearConv
from linearconv_convert import ConversionError, deploy, export
from linearconv_convert.exporting import runner
from training.memory import keep_freed_memory
from training.report import ROOT

DEFAULT_NETWORKS = [name for name in NETWORKS if name != "ResNeXt29"]
BATCHES = {task: batch for task, batch in INFERENCE.items() if batch <= 256}


def benchmark(network: str, options: Namespace) -> list[dict]:
    """Return one row for each batch size and contender of a network."""
    torch.manual_seed(0)
    dense, layers, paper = (NETWORKS[network](conv=conv).eval() for conv in (nn.Conv2d, LinearConv, AsInThePaper))
    models = {"dense": dense, "dense, folded": deploy(dense), "layers": layers}
    models |= {"as in the paper": paper, "deployed": deploy(layers)}
    if options.precision == "bfloat16":  # autocast casts the other networks in every pass
        for name in ("dense, folded", "deployed"):
            models[name].to(torch.bfloat16)
    sizes = {name: sum(tensor.nbytes for tensor in model.state_dict().values()) for name, model in models.items()}
    runners = {}
    for name in ("dense", "deployed") if options.precision == "float32" else ():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            sizes[f"{name}, onnxruntime"] = export(models[name], path, torch.randn(2, *IMAGE)).bytes
            runners[f"{name}, onnxruntime"] = runner(path)
    rows = []
    for task, batch in BATCHES.items():
        images, new = torch.randn(batch, *IMAGE), []
        steps = {name: make_step(model, task, options) for name, model in models.items()}
        steps |= {name: partial(run, images) for name, run in runners.items()}
        for name, row in compare(steps, options.seconds, options.device).items():
            new.append({"network": network, "task": task, "contender": name, "bytes": sizes[name], **row})
        show(new)
        rows += new
    return rows


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    add_network_options(parser, NETWORKS, DEFAULT_NETWORKS, seconds=10)
    options = parser.parse_args()
    rows = []
    for network in options.networks:
        try:
            rows += benchmark(network, options)
        except ConversionError as error:  # the packages for ONNX are missing
            parser.error(error)
    output = options.output or ROOT / "results" / f"deployment_{options.device}_{options.precision}.json"
    add_sitting(output, rows, options.device, onnxruntime=version("onnxruntime"))


if __name__ == "__main__":
    keep_freed_memory()
    main()
