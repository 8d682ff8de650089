"""Any network to LinearConv, its trained weights carried over, to a form for inference, to files, and back.

    from linearconv_convert import convert, deploy, export, fold

    small = convert(model, "rank", budget=0.5, calibration=images)
    fast = deploy(small)                                        # plain modules for inference, BatchNorm folded in
    plain = fold(small)                                         # plain nn.Conv2d everywhere
    export(small, "small.onnx", example_input)                  # what deploy returns, as a file
    initialise(network, "spectral")                             # LinearConv layers that are to be trained from scratch

The same from the command line: `python -m linearconv_convert --help`.
"""

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
    "convert",
    "deploy",
    "export",
    "fold",
    "initialise",
    "load_converted",
]
