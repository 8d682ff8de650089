"""The command line of conversion: load a network and its weights, convert, report, save and export.

    python -m linearconv_convert MODEL [--weights FILE] [-t TYPE] [-r RANK] [-s SPARSITY] [options]
    python -m linearconv_convert MODEL [--weights FILE] --budget 0.5 --of macs --curve curve.png [options]
    python -m linearconv_convert CHECKPOINT.pt --export small.onnx

MODEL is `FILE.py:NAME` (for example `models/vgg_xcnn.py:VGG11`; the file is executed), `torchvision:NAME`,
`timm:NAME`, or a checkpoint of models/zoo_xcnn.py. The network of a checkpoint is already converted and trained; it is
only exported. The type `lowrank` has no default rank: give -r, --budget or --error. The installed command is
`linearconv-convert`.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from linearconv_convert.adapters import KINDS
from linearconv_convert.budget import UNITS
from linearconv_convert.convert import convert
from linearconv_convert.exporting import FORMS, atomic_file, check_path, export, milliseconds, runner
from linearconv_convert.networks import load_converted, load_network, load_tensors, load_weights, read_record
from linearconv_convert.report import count_parameters, draw_curve, new_figure, warnings_as_lines
from linearconv_convert.surgery import ConversionError
from linearconv_variants import LINEARCONV_TYPES, OneLineParser, add_options, positive_int


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2, after one line on stderr, for bad input.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        if options.export:
            check_path(options.export)
        with warnings_as_lines(parser.prog):
            if options.model.endswith((".pt", ".pth")):
                _export_trained(options)
            else:
                _convert(options)
    except (ValueError, OSError) as error:
        parser.error(error)


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
    add("--num-classes", type=positive_int, help="of the network (default: its own)")
    add("--in-channels", type=positive_int, default=3, help="of an image (default: 3)")
    add("--image-size", type=positive_int, help="side of an image (default: 32 for FILE.py:NAME, else 224)")
    add("--output", type=Path, metavar="FILE", help="for the converted state_dict (default: ckpt/<name>-<type>.pt)")
    add("--export", type=Path, metavar="FILE", help="also write the network to FILE.onnx or FILE.pt2")
    forms = "of the exported file: as deployed, one convolution for each layer, or both files (default: deployed)"
    add("--form", choices=(*FORMS, "both"), default="deployed", help=forms)
    add("--dynamic", action="store_true", help="leave height and width of the exported file's images open")
    return parser


def _convert(options):
    if options.curve and options.budget is None and options.error is None:
        raise ConversionError("--curve shows the choices of --budget or --error: give one of them")
    output = options.output or Path("ckpt") / f"{options.model.rpartition(':')[2]}-{options.type}.pt"
    if output.suffix == ".json":
        raise ConversionError(f"--output {output}: .json is the ending of the choices of --budget; use .pt")
    figure = new_figure() if options.curve else None
    model = load_network(options.model, in_channels=options.in_channels, num_classes=options.num_classes)
    if options.weights:
        load_weights(model, options.weights)
    else:
        print("no --weights: the network has random weights, and its errors say nothing about a trained network")
    model.eval()
    example = _random_images(options.in_channels, options.image_size or (32 if ".py:" in options.model else 224))
    names = ("rank", "sparsity", "alpha", "compute", "budget", "of", "error", "skip", "include", "kinds", "grow")
    setting = {name: getattr(options, name) for name in names}
    if options.type == "lowrank" and options.rank and options.rank.is_integer():
        setting["rank"] = int(options.rank)
    images = options.calibration and _load_images(options.calibration)
    small, report = convert(
        model, options.type, **setting, calibration=images, example_input=example, return_report=True
    )
    print(report)
    if options.curve:
        draw_curve(figure, report, options.of, options.curve)
    _save(small, report, output, options.type, setting)
    if options.export:
        _export(model, small, options, example)


def _export_trained(options):
    """Export the network of a checkpoint that has a record."""
    record = read_record(options.model)
    for name in ("weights", "budget", "error", "calibration"):
        if getattr(options, name) is not None:
            raise ConversionError(f"--{name}: the network of {options.model} is converted and trained already")
    if not options.export:
        raise ConversionError(f"the network of {options.model} is trained already: --export writes it to a file")
    small = load_converted(options.model).eval()
    dense = load_network(record["name"], in_channels=record["in_channels"], num_classes=record["num_classes"]).eval()
    print(f"{record['name']}: {count_parameters(small):,} parameters (dense {count_parameters(dense):,})")
    example = _random_images(record["in_channels"], options.image_size or record["image_size"])
    _export(dense, small, options, example)


def _random_images(channels, side):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def _load_images(path):
    images = load_tensors(path)
    if not isinstance(images, torch.Tensor) or images.ndim != 4:
        raise ConversionError(f"{path} has no images: a tensor (N, C, H, W)")
    return images


def _save(small, report, output, type, setting):
    """Write the state_dict and, for a budget, a JSON file of the chosen settings, and print how to load them."""
    output.parent.mkdir(parents=True, exist_ok=True)
    state = io.BytesIO()  # on a full disk, the error of torch.save does not name the cause
    torch.save(small.state_dict(), state)
    with atomic_file(output) as part:
        part.write_bytes(state.getbuffer())
    given = [f"{name}={value!r}" for name, value in setting.items() if value != convert.__kwdefaults__[name]]
    if report.curve:
        chosen = {"alpha": {layer.name: layer.variant.alpha if layer.variant else 1.0 for layer in report.layers}}
        if type == "lowrank":
            chosen["rank"] = {layer.name: layer.variant.rank if layer.variant else 1 for layer in report.layers}
        path = output.with_suffix(".json")
        with atomic_file(path) as part:
            part.write_text(json.dumps(chosen, indent=1))
        given = [each for each in given if each.startswith(("compute", "kinds"))]
        given.insert(0, f"**json.load(open({str(path)!r}))")
    print(f"written: {output} (load it into convert(model, {', '.join([repr(type), *given])}, init='scratch'))")


def _export(dense, small, options, example):
    """Write the files, and print their sizes and speeds and the size and speed of the dense network."""
    path = options.export
    files = {options.form: path}
    if options.form == "both":
        files = {form: path.with_name(f"{path.stem}-{form}{path.suffix}") for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / f"dense{path.suffix}"
        print(_exported_line("dense", dense, temporary, "folded", options.dynamic, example))
        for form, file in files.items():
            print(f"{_exported_line(form, small, file, form, options.dynamic, example)}  {file}")


def _exported_line(label, network, path, form, dynamic, example):
    exported = export(network, path, example, form, dynamic)
    with torch.no_grad():
        taken = milliseconds(runner(path), example[:1])
    return f"{label:8}  {exported.bytes / 1e6:8.2f} MB  {taken:8.2f} ms an image  error {exported.error:.0e}"


if __name__ == "__main__":
    main()
