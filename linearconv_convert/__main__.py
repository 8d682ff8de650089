"""The command line of conversion: load a network and its weights, convert, report, save and export.

    python -m linearconv_convert MODEL [--weights FILE] [-t TYPE] [-r RANK] [-s SPARSITY] [options]
    python -m linearconv_convert MODEL [--weights FILE] --budget 0.5 --of macs --curve curve.png [options]
    python -m linearconv_convert CHECKPOINT.pt --export small.onnx

MODEL is `FILE.py:NAME` (for example `models/vgg_xcnn.py:VGG11`; the file is executed), `torchvision:NAME`,
`timm:NAME`, or a checkpoint of models/zoo_xcnn.py, whose network is already converted and trained, and only exported.
The type `lowrank` has no default rank: give -r, --budget or --error. The installed command is `linearconv-convert`.
"""

import argparse
import importlib.util
import io
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from linearconv_convert import networks
from linearconv_convert.adapters import KINDS
from linearconv_convert.budget import UNITS
from linearconv_convert.convert import convert
from linearconv_convert.exporting import FORMS, atomic_file, check_path, export
from linearconv_convert.report import count_parameters, draw_curve, warnings_as_lines
from linearconv_convert.surgery import ConversionError
from linearconv_variants import LINEARCONV_TYPES, OneLineParser, add_options, positive_int


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; SystemExit has code 2, after one line on stderr, for bad input, and 143 for SIGTERM."""
    parser = _parser()
    options = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # removes unfinished files
    try:
        with warnings_as_lines(parser.prog):
            _run(options)
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser():
    parser = OneLineParser(
        prog="linearconv-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="FILE.py:NAME, torchvision:NAME or timm:NAME; or a checkpoint to export")
    add("--weights", type=Path, metavar="FILE", help="state_dict, or a checkpoint with one (default: random weights)")
    without_rank = "default: 1; lowrank has none, give -r, --budget or --error"
    add_options(parser, types=LINEARCONV_TYPES, usual_ranks=without_rank)
    parser.set_defaults(alpha=None)
    add("--budget", type=float, metavar="SHARE", help="size of the result; --alpha, or -r of lowrank, is chosen for it")
    add("--of", choices=UNITS, default="parameters", help="unit of the --budget (default: parameters)")
    add("--error", type=float, metavar="SHARE", help="instead of --budget: relative error of each layer")
    add("--curve", type=Path, metavar="FILE", help="picture of expected error against size, with --budget")
    add("--skip", nargs="+", default=(), metavar="NAME", help="layers to leave alone, by name or pattern")
    add("--include", nargs="+", metavar="NAME", help="the only layers to convert, by name or pattern")
    add("--kinds", nargs="+", choices=KINDS, default=("conv2d",), help="layers to convert (default: conv2d)")
    add("--grow", action="store_true", help="also convert layers that would not get smaller")
    add("--calibration", type=Path, metavar="FILE", help="images to fit outputs on, written by torch.save")
    add("--num-classes", type=positive_int, help="classes of the network (default: its own)")
    add("--in-channels", type=positive_int, default=3, help="channels of an image (default: 3)")
    add("--image-size", type=positive_int, help="side of an image (default: 32 for FILE.py:NAME, else 224)")
    output = "file of the converted state_dict; its settings are written beside it (default: ckpt/<name>-<type>.pt)"
    add("--output", type=Path, metavar="FILE", help=output)
    add("--export", type=Path, metavar="FILE", help="also write the network to FILE.onnx or FILE.pt2")
    forms = "the deployed network, one convolution for each layer, or both files (default: deployed)"
    add("--form", choices=(*FORMS, "both"), default="deployed", help=forms)
    add("--dynamic", action="store_true", help="leave height and width of the exported file's images open")
    return parser


def _run(options):
    if options.export:
        check_path(options.export)
    is_trained = options.model.endswith((".pt", ".pth"))
    if is_trained:
        record = networks.read_record(options.model)
        channels, side = record["in_channels"], options.image_size or record["image_size"]
    else:
        channels, side = options.in_channels, options.image_size or (32 if ".py:" in options.model else 224)
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    small = _trained(options) if is_trained else _converted(options, images)
    forms = FORMS if options.form == "both" else [options.form]
    for form in forms if options.export else ():
        path = options.export.with_stem(f"{options.export.stem}-{form}") if len(forms) > 1 else options.export
        exported = export(small, path, images, form, options.dynamic)
        print(f"{form:8}  {exported.bytes / 1e6:8.2f} MB  error {exported.error:.0e}  {path}")


def _trained(options):
    """The network of a checkpoint that has a record."""
    for name in ("weights", "budget", "error", "calibration"):
        if getattr(options, name) is not None:
            raise ConversionError(f"--{name}: the network of {options.model} is converted and trained already")
    if not options.export:
        raise ConversionError(f"the network of {options.model} is trained already: --export writes it to a file")
    small = networks.load_converted(options.model)
    print(f"{options.model}: {count_parameters(small):,} parameters")
    return small


def _converted(options, example):
    """The converted network, after its report is printed, and its weights and settings are written."""
    output = options.output or Path("ckpt") / f"{options.model.rpartition(':')[2]}-{options.type}.pt"
    if output.suffix == ".json":
        raise ConversionError(f"--output {output}: .json is the ending of the settings; use .pt")
    if options.curve and options.budget is None and options.error is None:
        raise ConversionError("--curve shows the choices of --budget or --error: give one of them")
    if options.curve and importlib.util.find_spec("matplotlib") is None:
        raise ConversionError("a picture of the curve needs the package matplotlib: pip install matplotlib")
    model = networks.load_network(options.model, in_channels=options.in_channels, num_classes=options.num_classes)
    if options.weights:
        networks.load_weights(model, options.weights)
    else:
        print("no --weights: the network has random weights, and its errors say nothing about a trained network")
    names = ("rank", "sparsity", "alpha", "compute", "budget", "of", "error", "skip", "include", "kinds", "grow")
    given = {name: getattr(options, name) for name in names}
    given |= {
        "calibration": options.calibration and networks.load_tensors(options.calibration),
        "example_input": example,
    }
    small, report = convert(model.eval(), options.type, **given, return_report=True)
    print(report)
    if options.curve:
        draw_curve(report, options.of, options.curve)
    state = io.BytesIO()  # on a full disk, the error of torch.save does not name the cause
    torch.save(small.state_dict(), state)
    setting = networks.setting_of(report, options.type) | {"kinds": options.kinds, "grow": True, "init": "scratch"}
    settings = output.with_suffix(".json")
    output.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((output, state.getvalue()), (settings, json.dumps(setting, indent=1).encode())):
        with atomic_file(path) as part:
            part.write_bytes(content)
    print(f"written: {output} (load it into convert(model, **json.load(open({str(settings)!r}))))")
    return small


if __name__ == "__main__":
    main()
