"""Convert any network to LinearConv with its trained weights; deploy, export or fold the result.

    small = convert(model, "rank", budget=0.5, calibration=images)
    fast = deploy(small)                                        # plain modules for inference, with BatchNorm folded
    balance(small); train(small); unbalance(small)              # train it further
    plain = fold(small)                                         # nn.Conv2d for every LinearConv
    export(small, "small.onnx", example_input)                  # the deployed network as a file
    initialise(network, "spectral")                             # LinearConv layers for training from scratch

The command line is `python -m linearconv_convert --help`.
"""

from linearconv_convert.balance import balance, unbalance
from linearconv_convert.convert import convert
from linearconv_convert.deploying import deploy
from linearconv_convert.exporting import export
from linearconv_convert.folding import fold
from linearconv_convert.networks import load_converted
from linearconv_convert.report import LayerReport, Report
from linearconv_convert.surgery import ConversionError, ConversionWarning
from linearconv_convert.weights import initialise

__all__ = [
    "ConversionError",
    "ConversionWarning",
    "LayerReport",
    "Report",
    "balance",
    "convert",
    "deploy",
    "export",
    "fold",
    "initialise",
    "load_converted",
    "unbalance",
]
