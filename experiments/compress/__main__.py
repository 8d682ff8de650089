"""Compression of a trained network: accuracy after conversion and after fine-tuning, compared with other methods.

    python -m experiments.compress models/base_xcnn.py:Base --name compress_base --epochs 16 --finetune 2 \
        -- --dataset imagefolder --data-root DIR
    python -m experiments.compress --name compress_base --table        # only table and plot of the result

Train the dense network, convert it to each variant of LinearConv (with and without calibration on training images, and
with a budget that is distributed over the layers), and measure test accuracy directly after conversion and after every
epoch of fine-tuning. For comparison, the same LinearConv networks are trained from scratch, and the other methods of
methods.py are measured with equal parameters (Tucker decomposition requires tensorly, channel pruning torch-pruning).
Options after `--` apply to the training (models/<script> --help).

Writes results/<name>.json and .png, and prints the table. Runs are in ckpt/<name>/; finished runs are not repeated, and
an interrupted run resumes after its last epoch.
"""

import json
import shlex
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import shown_command, split_arguments
from experiments.compress.study import Study, run
from experiments.compress.table import markdown, plot
from linearconv_variants import OneLineParser, positive_int
from training.errors import EXPECTED, report_failure
from training.report import ROOT, origin


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(
        prog="python -m experiments.compress", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("network", nargs="?", default="", help="a network of models/, as models/base_xcnn.py:Base")
    add("--name", required=True, help="of the result: results/NAME.json")
    add("--note", default="", help="description of the data, kept in the result")
    add("--table", action="store_true", help="run nothing: show the result")
    add("--epochs", type=positive_int, default=16, help="of the dense network and from scratch (default: 16)")
    add("--finetune", type=positive_int, default=2, help="epochs after conversion (default: 2)")
    own, extra = split_arguments(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(own)
    output = ROOT / "results" / f"{options.name}.json"
    try:
        if not options.table:
            script, _, network = options.network.partition(":")
            if not Path(script).is_file() or not network:
                parser.error(f"{options.network or 'the network'} is not given as models/FILE.py:NAME")
            if "--dataset" not in extra:
                parser.error("give the data behind --, as in -- --dataset cifar10")
            study = Study(Path(script), network, ROOT / "ckpt" / options.name, extra)
            made_by = origin(study.options.device)
            made_by["command"] = shown_command(shlex.split(made_by["command"]), study.options.data_root)
            record = {key: getattr(options, key) for key in ("note", "network", "epochs", "finetune")}
            record |= {"amp": study.options.amp, "origin": made_by, "rows": []}
            run(study, options.epochs, options.finetune, record, output)
        record = json.loads(output.read_text())
        print("\n".join(markdown(record)))
        drawn = plot(record, output.with_suffix(".png"))
    except EXPECTED as error:
        return report_failure(error, "compress")
    print(f"written: {output.with_suffix('.png')}" if drawn else "no plot: pip install matplotlib")
    return 0


if __name__ == "__main__":
    sys.exit(main())
