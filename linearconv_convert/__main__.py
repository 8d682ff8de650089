"""The command line of conversion: take a network and its weights, convert, report, save, export.

    python -m linearconv_convert MODEL [--weights FILE] [-t TYPE] [-r RANK] [-s SPARSITY] [options]

MODEL is `FILE.py:NAME` (as `models/vgg_xcnn.py:VGG11`), `torchvision:NAME` or `timm:NAME`.
"""

import argparse
import importlib.util
import inspect
import pickle
import sys
from pathlib import Path

import torch

from linearconv import COMPUTE_MODES
from linearconv_convert.convert import convert
from linearconv_convert.exporting import FORMS, export, milliseconds, onnx_runner
from linearconv_variants import LINEARCONV_TYPES
from training.checkpoints import write_whole
from training.options import OneLineParser, UsageError, fail, positive_int

CHECKPOINT_KEYS = ("model", "state_dict", "model_state_dict")  # under which training scripts save a network's state


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        _run(options)
    except (UsageError, ValueError) as error:
        return fail(error, parser.prog)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}", parser.prog)
    return 0


def _parser():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="FILE.py:NAME, torchvision:NAME or timm:NAME")
    add("--weights", type=Path, metavar="FILE", help="state_dict, or a checkpoint that holds one; else random weights")
    add("-t", "--type", choices=LINEARCONV_TYPES, default="rank", help="variant, as in the training scripts")
    add("-r", "--rank", type=float, help="share in (0, 1] for rank (default 1), integer for lowrank (default 10)")
    add("-s", "--sparsity", type=float, help="share of coefficients to prune, for sparse (default 0.25)")
    add("--alpha", type=float, default=0.5, help="share of primary filters (default: 0.5)")
    add("--compute", choices=COMPUTE_MODES, default="auto", help="how LinearConv is evaluated (default: auto)")
    add("--skip", nargs="+", default=(), metavar="NAME", help="layers to leave alone, by name or pattern")
    add("--include", nargs="+", metavar="NAME", help="the only layers to convert, by name or pattern")
    add("--grow", action="store_true", help="convert layers that would not get smaller too")
    add("--calibration", type=Path, metavar="FILE", help="images to match outputs on: a tensor that torch.save wrote")
    add("--num-classes", type=positive_int, help="of the network; default: its own")
    add("--in-channels", type=positive_int, default=3, help="of an image (default: 3)")
    add("--image-size", type=positive_int, help="side of an image (default: 32 for FILE.py:NAME, else 224)")
    add("--output", type=Path, metavar="FILE", help="for the converted state_dict (default: ckpt/<name>-<type>.pt)")
    add("--export", type=Path, metavar="FILE", help="also write the network to FILE.onnx or FILE.pt2")
    add("--form", choices=(*FORMS, "both"), default="features",
        help="of the exported file: factorised, plain, or both, in two files (default: features)")  # fmt: skip
    return parser


def _run(options):
    if options.type == "lowrank" and options.rank is not None:
        if not options.rank.is_integer():
            raise UsageError(f"-r/--rank must be an integer of at least 1 with -t lowrank, got {options.rank:g}")
        options.rank = int(options.rank)
    model = load_network(options.model, in_channels=options.in_channels, num_classes=options.num_classes)
    if options.weights:
        load_weights(model, options.weights)
    else:
        print("no --weights: the network has random weights, and its errors say nothing of a trained one")
    model.eval()
    side = options.image_size or (32 if ".py:" in options.model else 224)
    example = torch.randn(2, options.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    setting = {"rank": options.rank, "sparsity": options.sparsity, "alpha": options.alpha, "compute": options.compute}
    small, report = convert(
        model,
        options.type,
        **setting,
        skip=options.skip,
        include=options.include,
        grow=options.grow,
        calibration=_read(options.calibration) if options.calibration else None,
        example_input=example,
        return_report=True,
    )
    print(report)
    name = options.model.rpartition(":")[2]
    output = options.output or Path("ckpt") / f"{name}-{options.type}.pt"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda file: torch.save(small.state_dict(), file))
    given = "".join(f", {key}={value!r}" for key, value in setting.items() if value not in (None, "auto"))
    print(f"written: {output} (load it into convert(model, {options.type!r}{given}, init='scratch'))")
    if options.export:
        _export(model, small, options, example)


def load_network(spec, *, in_channels=3, num_classes=None):
    """Build the network that `FILE.py:NAME`, `torchvision:NAME` or `timm:NAME` stands for, with random weights.

    Raises:
        UsageError: where there is no such file, package, or network, or it does not take these arguments.
    """
    source, _, name = spec.rpartition(":")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    channels = {} if in_channels == 3 else {"in_channels": in_channels}
    try:
        if source == "torchvision":
            if channels:
                raise UsageError("torchvision's networks take images of 3 channels")
            from torchvision.models import get_model

            return get_model(name, weights=None, **classes)
        if source == "timm":
            import timm

            return timm.create_model(name, in_chans=in_channels, **classes)
    except ImportError as error:
        raise UsageError(f"{spec} needs the package {source}: pip install {source} ({error})") from None
    except (ValueError, RuntimeError, TypeError) as error:
        raise UsageError(f"{source} cannot build {name}: {error}") from None
    if not source.endswith(".py"):
        raise UsageError(f"{spec!r} is not FILE.py:NAME, torchvision:NAME or timm:NAME")
    if not Path(source).is_file():
        raise UsageError(f"there is no file {source}")
    module_spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(Path(source).resolve().parent))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # a user's file may fail in any way
        raise UsageError(f"{source} cannot be imported: {type(error).__name__}: {error}") from None
    network = getattr(module, name, None)
    if not callable(network):
        classes = inspect.getmembers(module, inspect.isclass)
        found = [key for key, value in classes if value.__module__ == module.__name__]
        raise UsageError(f"{source} defines no network {name}; it has {', '.join(found) or 'none'}")
    try:
        model = network(**channels, **classes)
    except TypeError as error:
        raise UsageError(f"{name} does not take these arguments: {error}") from None
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"{name} of {source} gives a {type(model).__name__}, not a network")
    return model


def load_weights(model, path):
    """Load a state_dict, or a checkpoint that holds one, into a network; only tensors are read, no code is run.

    Raises:
        UsageError: for a file that cannot be read or does not fit, naming the first difference.
    """
    state = _read(path)
    state = next((state[key] for key in CHECKPOINT_KEYS if isinstance(state, dict) and key in state), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no state_dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        hint = "; it is of a LinearConv network already" if any(key.endswith("conv_weights") for key in state) else ""
        raise UsageError(f"{path} does not fit the network: {lines[min(1, len(lines) - 1)][:160]}{hint}") from None


def _read(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UsageError(f"{path} cannot be read as tensors ({reason})") from None


def _export(model, small, options, example):
    """Write the files that were asked for and say how large and how fast they are, beside the dense network's."""
    path = options.export
    forms = FORMS if options.form == "both" else [options.form]
    dense_path = path.with_name(f"{path.stem}-dense{path.suffix}")
    wanted = [(model, dense_path, "folded", "dense")]
    for form in forms:
        one = path if len(forms) == 1 else path.with_name(f"{path.stem}-{form}{path.suffix}")
        wanted.append((small, one, form, form))
    try:
        for network, file, form, called in wanted:
            exported = export(network, file, example, form)
            run = onnx_runner(file) if file.suffix == ".onnx" else torch.export.load(file).module()
            with torch.no_grad():
                taken = milliseconds(run, example[:1])
            print(f"{called:8}  {exported.bytes / 1e6:8.2f} MB  {taken:8.2f} ms an image  "
                  f"error {exported.error:.0e}  {'' if called == 'dense' else file}")  # fmt: skip
    finally:
        dense_path.unlink(missing_ok=True)  # only to compare with


if __name__ == "__main__":
    sys.exit(main())
