"""The command line of conversion: take a network and its weights, convert, report, save, export.

    python -m linearconv_convert MODEL [--weights FILE] [-t TYPE] [-r RANK] [-s SPARSITY] [options]
    python -m linearconv_convert MODEL [--weights FILE] --budget 0.5 --of macs --curve curve.png [options]
    python -m linearconv_convert CHECKPOINT.pt --export small.onnx

MODEL is `FILE.py:NAME` (as `models/vgg_xcnn.py:VGG11`), `torchvision:NAME` or `timm:NAME`; or a checkpoint of
models/zoo_xcnn.py, whose network, converted and trained already, is only exported. `lowrank` has no default rank here:
give -r, or --budget. Installed, the command is called `linearconv-convert` too.
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
from linearconv_convert.exporting import FORMS, atomic_file, export, milliseconds, runner
from linearconv_convert.networks import load_converted, load_network, load_tensors, load_weights, read_record
from linearconv_convert.report import count_parameters, draw_curve, new_figure, warnings_as_lines
from linearconv_convert.surgery import ConversionError
from linearconv_variants import LINEARCONV_TYPES, OneLineParser, add_options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2, after one line on stderr, for whatever is wrong with what was asked for.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        with warnings_as_lines(parser.prog):
            if options.model.endswith((".pt", ".pth")):
                _export_trained(options)
            else:
                _run(options)
    except (ValueError, OSError) as error:
        parser.error(error)


def _parser():
    parser = OneLineParser(
        prog="linearconv-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="FILE.py:NAME, torchvision:NAME or timm:NAME; or a checkpoint to export")
    add("--weights", type=Path, metavar="FILE", help="state_dict, or a checkpoint that holds one; else random weights")
    without_rank = "default: 1; lowrank has none, give -r, --budget or --error"
    add_options(parser, types=LINEARCONV_TYPES, usual_ranks=without_rank)
    parser.set_defaults(alpha=None)
    add("--budget", type=float, metavar="SHARE", help="size of the result; --alpha, or -r of lowrank, is chosen for it")
    add("--of", choices=UNITS, default="parameters", help="the size that --budget means (default: parameters)")
    add("--error", type=float, metavar="SHARE", help="instead of --budget: relative error that each layer may have")
    add("--curve", type=Path, metavar="FILE", help="for a picture of expected error against size, with --budget")
    add("--skip", nargs="+", default=(), metavar="NAME", help="layers to leave alone, by name or pattern")
    add("--include", nargs="+", metavar="NAME", help="the only layers to convert, by name or pattern")
    add("--kinds", nargs="+", choices=KINDS, default=("conv2d",), help="layers to convert (default: conv2d)")
    add("--grow", action="store_true", help="convert layers that would not get smaller too")
    add("--calibration", type=Path, metavar="FILE", help="images to match outputs on, written by torch.save")
    add("--num-classes", type=positive_int, help="of the network; default: its own")
    add("--in-channels", type=positive_int, default=3, help="of an image (default: 3)")
    add("--image-size", type=positive_int, help="side of an image (default: 32 for FILE.py:NAME, else 224)")
    add("--output", type=Path, metavar="FILE", help="for the converted state_dict (default: ckpt/<name>-<type>.pt)")
    add("--export", type=Path, metavar="FILE", help="also write the network to FILE.onnx or FILE.pt2")
    forms = "of the exported file: as deployed, one convolution for each layer, or both files (default: deployed)"
    add("--form", choices=(*FORMS, "both"), default="deployed", help=forms)
    add("--dynamic", action="store_true", help="leave height and width of the exported file's images open")
    return parser


def positive_int(text: str) -> int:
    """Return the integer of an option's text; argparse names this function where it is none."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _run(options):
    if options.curve and options.budget is None and options.error is None:
        raise ConversionError("--curve shows what --budget or --error chose from: give one of them")
    figure = new_figure() if options.curve else None
    model = load_network(options.model, in_channels=options.in_channels, num_classes=options.num_classes)
    if options.weights:
        load_weights(model, options.weights)
    else:
        print("no --weights: the network has random weights, and its errors say nothing of a trained one")
    model.eval()
    side = options.image_size or (32 if ".py:" in options.model else 224)
    example = torch.randn(2, options.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    names = ("rank", "sparsity", "alpha", "compute", "budget", "of", "error", "skip", "include", "kinds", "grow")
    setting = {name: getattr(options, name) for name in names}
    if options.type == "lowrank" and options.rank and options.rank.is_integer():
        setting["rank"] = int(options.rank)
    images = {"calibration": options.calibration and _load_images(options.calibration), "example_input": example}
    small, report = convert(model, options.type, **setting, **images, return_report=True)
    print(report)
    if options.curve:
        draw_curve(figure, report, options.of, options.curve)
    output = options.output or Path("ckpt") / f"{options.model.rpartition(':')[2]}-{options.type}.pt"
    _save(small, report, output, options.type, setting)
    if options.export:
        _export(model, small, options.export, options.form, options.dynamic, example)


def _export_trained(options):
    """Write the network of a checkpoint that says which one it is of."""
    for name in ("weights", "budget", "error", "calibration"):
        if getattr(options, name) is not None:
            raise ConversionError(f"--{name}: {options.model} holds a network that is converted and trained already")
    if not options.export:
        raise ConversionError(f"{options.model} holds a network that is trained already: --export writes it to a file")
    record, small = read_record(options.model), load_converted(options.model).eval()
    dense = load_network(record["name"], in_channels=record["in_channels"], num_classes=record["num_classes"]).eval()
    print(f"{record['name']}: {count_parameters(small):,} parameters (dense {count_parameters(dense):,})")
    side = options.image_size or record["image_size"]
    example = torch.randn(2, record["in_channels"], side, side, generator=torch.Generator().manual_seed(0))
    _export(dense, small, options.export, options.form, options.dynamic, example)


def _save(small, report, output, type, setting):
    """Write the state_dict, with what was chosen beside it, and say how it is loaded."""
    output.parent.mkdir(parents=True, exist_ok=True)
    state = io.BytesIO()  # torch.save to a full disk would not say that it is full
    torch.save(small.state_dict(), state)
    with atomic_file(output) as part:
        part.write_bytes(state.getbuffer())
    given = [f"{name}={value!r}" for name, value in setting.items() if value != convert.__kwdefaults__[name]]
    if report.curve:
        chosen = output.with_suffix(".json")
        variants = {layer.name: layer.variant for layer in report.layers}
        alphas = {name: variant.alpha if variant else 1.0 for name, variant in variants.items()}
        ranks = {name: variant.rank if variant else 1 for name, variant in variants.items()}
        with atomic_file(chosen) as part:
            part.write_text(json.dumps({"alpha": alphas} | ({"rank": ranks} if type == "lowrank" else {}), indent=1))
        given = [
            f"**json.load(open({str(chosen)!r}))",
            *(each for each in given if each.startswith(("compute", "kinds"))),
        ]
    print(f"written: {output} (load it into convert(model, {', '.join([repr(type), *given])}, init='scratch'))")


def _load_images(path):
    images = load_tensors(path)
    if not isinstance(images, torch.Tensor) or images.ndim != 4:
        raise ConversionError(f"{path} holds no images: a tensor (N, C, H, W)")
    return images


def _export(model, small, path, form, dynamic, example):
    """Write the files that were asked for and say how large and how fast they are, beside the dense network's."""
    files = {form: path}
    if form == "both":
        files = {form: path.with_name(f"{path.stem}-{form}{path.suffix}") for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        dense = "dense", model, Path(folder) / f"dense{path.suffix}", "folded"
        for label, network, file, form in [dense, *((form, small, file, form) for form, file in files.items())]:
            exported = export(network, file, example, form, dynamic)
            with torch.no_grad():
                taken = milliseconds(runner(file), example[:1])
            line = f"{label:8}  {exported.bytes / 1e6:8.2f} MB  {taken:8.2f} ms an image  error {exported.error:.0e}"
            print(line if network is model else f"{line}  {file}")


if __name__ == "__main__":
    main()
