"""Networks by name, from a file, torchvision or timm; their weights, from a state_dict or a checkpoint with a record.

    record = {"name": "torchvision:resnet18", "in_channels": 3, "num_classes": 10, "image_size": 224}
    record["conversion"] = setting_of(report, "rank")               # None for a network that was not converted
    torch.save({"model": small.state_dict(), "network": record}, "small.pt")
    small = load_converted("small.pt")                              # needs no images and no search for a budget

A record has plain values, like checkpoints and JSON. Loading a record executes no user code: its name must be the name
of a network in torchvision or timm.
"""

import runpy
import sys
import warnings
import zipfile
from difflib import get_close_matches
from inspect import signature
from pathlib import Path

import torch
import torch.nn as nn

from linearconv_convert.convert import convert
from linearconv_convert.report import Report
from linearconv_convert.surgery import ConversionError, ConversionWarning, first_line

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # training heads of torchvision's googlenet and inception_v3
CHECKPOINT_KEYS = ("model", "state_dict", "model_state_dict")  # keys of a state_dict in a checkpoint
RECORD = "network"  # key of the record in a checkpoint
AVERAGE = "average"  # key of averaged weights in a checkpoint, which take precedence
LIBRARIES = ("torchvision", "timm")


def load_network(spec: str, *, in_channels: int = 3, num_classes: int | None = None) -> nn.Module:
    """Build a network with random weights; nothing is downloaded.

    Args:
        spec: `FILE.py:NAME`, `torchvision:NAME` or `timm:NAME`. The code of FILE.py is executed.
        in_channels: channels of the input images.
        num_classes: number of classes. Default: the network's own number

    Raises:
        ConversionError: if the file, package or network does not exist, or the network does not take these arguments.
    """
    source, _, name = spec.rpartition(":")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if source.endswith(".py"):
        return _from_file(Path(source), name, classes | ({} if in_channels == 3 else {"in_channels": in_channels}))
    if source not in LIBRARIES:
        raise ConversionError(f"{spec!r} is not FILE.py:NAME, torchvision:NAME or timm:NAME")
    try:
        if source == "timm":
            from timm import create_model, list_models

            build, options = create_model, {"in_chans": in_channels}
        else:
            from torchvision.models import get_model, get_model_builder, list_models

            build, options = get_model, {"weights": None}
    except ImportError as error:
        raise ConversionError(f"{spec} needs the package {source}: pip install {source} ({error})") from None
    try:
        if source == "torchvision":
            if in_channels != 3:
                raise ValueError("its networks take images of 3 channels")
            if "weights_backbone" in signature(get_model_builder(name)).parameters:
                options["weights_backbone"] = None  # the default of segmentation and detection downloads weights
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # warnings about the initial weights of some networks
            model = build(name, **options, **classes)
    except Exception as error:  # invalid names and numbers of classes raise various errors
        close = [] if name in list_models() else get_close_matches(name, list_models())
        hint = f"; there is {', '.join(close)}" if close else ""
        raise ConversionError(f"{source} cannot build {name}: {first_line(error)}{hint}") from None
    if source == "torchvision":
        for head in AUXILIARY:  # removed to have one output in training too
            if getattr(model, head, None) is not None:
                setattr(model, head, None)
                model.aux_logits = False
    return model


def _from_file(path, name, arguments):
    if not path.is_file():
        raise ConversionError(f"there is no file {path}")
    sys.path.insert(0, str(path.resolve().parent))  # for imports of modules in the same folder
    try:
        defined = runpy.run_path(str(path), run_name="network")
    except (Exception, SystemExit) as error:  # a user's file may raise any error
        raise ConversionError(f"{path} cannot be imported: {type(error).__name__}: {error}") from None
    network = defined.get(name)
    if not callable(network):
        found = [key for key, value in defined.items() if isinstance(value, type) and value.__module__ == "network"]
        raise ConversionError(f"{path} defines no network {name}; it has {', '.join(sorted(found)) or 'none'}")
    try:
        model = network(**arguments)
    except TypeError as error:
        raise ConversionError(f"{name} does not take these arguments: {error}") from None
    if not isinstance(model, nn.Module):
        raise ConversionError(f"{name} of {path} returns a {type(model).__name__}, not a network")
    return model


# ---- files of weights ------------------------------------------------------------------------------------------------


def load_tensors(path: str | Path) -> object:
    """Return the tensors and plain containers in a file that torch.save wrote, on the CPU.

    Raises:
        ConversionError: for a file with any other content.
    """
    try:
        if zipfile.is_zipfile(path):  # torch.load does not check the checksums of the archive
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ConversionError(f"{path} cannot be read as tensors ({first_line(error)[:120]})") from None


def load_weights(model: nn.Module, path: str | Path, num_classes: int | None = None) -> list[str]:
    """Load a state_dict, or a checkpoint with a state_dict, from a file of torch.save; no code in it is executed.

    Args:
        model: the network.
        path: path of the file.
        num_classes: number of classes of the model, if the file's network may have another number. Parameters that
            differ only in the number of classes, those of the classifier, are then left unchanged.

    Returns:
        The names of the parameters that were left unchanged.

    Raises:
        ConversionError: for a file that cannot be read, or that does not fit; the message names the first difference.
        OSError: if the file does not exist.
    """
    state, own = state_of(load_tensors(path), path), model.state_dict()
    state = {key: value for key, value in state.items() if key in own or key.partition(".")[0] not in AUXILIARY}
    left = []
    for key in own.keys() & state.keys():
        ours, theirs = own[key].shape, state[key].shape
        if len(ours) and ours != theirs and ours == (num_classes, *theirs[1:]):  # (num_classes, ...), (another, ...)
            left.append(key)
    left.sort(key=list(own).index)
    try:
        model.load_state_dict(state | {key: own[key] for key in left})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        hint = "; it is of a LinearConv network already" if any(key.endswith("conv_weights") for key in state) else ""
        raise ConversionError(f"{path} does not fit the network: {lines[min(1, len(lines) - 1)][:160]}{hint}") from None
    return left


def state_of(content: object, path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state_dict in a file's content: the content itself, or its entry for one of `CHECKPOINT_KEYS`.

    Raises:
        ConversionError: if there is no state_dict.
    """
    state = next((content[key] for key in CHECKPOINT_KEYS if isinstance(content, dict) and key in content), content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(f"{path} has no state_dict")
    return {key.removeprefix("module."): value for key, value in state.items()}


# ---- records of conversions ------------------------------------------------------------------------------------------


def setting_of(report: Report, type: str) -> dict[str, object]:
    """Return the arguments with which :func:`convert` rebuilds the layers of a conversion."""
    variants = {layer.name: layer.variant for layer in report.converted}
    alphas = {name: variant.alpha for name, variant in variants.items()}
    ranks = {name: variant.rank for name, variant in variants.items() if variant.rank is not None}
    shared = {(variant.sparsity, variant.compute) for variant in variants.values()}
    sparsity, compute = shared.pop() if shared else (None, "auto")
    settings = {"alpha": alphas, "rank": ranks, "sparsity": sparsity, "compute": compute}
    return {"type": type, "include": list(variants), **settings}


def convert_again(model: nn.Module, setting: dict[str, object] | None) -> nn.Module:
    """Return a network with the layers of a recorded conversion and initial weights.

    Args:
        model: the network before its conversion; it is not changed.
        setting: the result of :func:`setting_of`, or None for a network that was not converted.
    """
    if setting is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the first conversion has warned already
        return convert(model, **setting, grow=True, init="scratch")


def read_record(path: str | Path) -> dict[str, object]:
    """Return the record in a checkpoint.

    Raises:
        ConversionError: if there is no record, or its network is not in torchvision or timm.
    """
    content = load_tensors(path)
    record = content.get(RECORD) if isinstance(content, dict) else None
    if not isinstance(record, dict) or "conversion" not in record:
        raise ConversionError(f"{path} does not say which network it is of: give it as --weights of one")
    if str(record.get("name")).rpartition(":")[0] not in LIBRARIES:
        reason = "only networks of torchvision and timm are built from a file of weights"
        raise ConversionError(f"{path} names the network {record.get('name')!r}: {reason}")
    return record


def load_converted(path: str | Path) -> nn.Module:
    """Return the network of a checkpoint with its weights, or with its averaged weights if there are any.

    Args:
        path: path of a checkpoint with a state_dict and, under the key `RECORD`, a record.

    Raises:
        ConversionError: for a file without these entries, or a network that is not in its library.
        OSError: if the file does not exist.
    """
    record, content = read_record(path), load_tensors(path)
    state = state_of(content.get(AVERAGE, content), path)
    state.pop("n_averaged", None)  # a buffer of torch's AveragedModel
    shape = {name: record[name] for name in ("in_channels", "num_classes")}
    model = convert_again(load_network(record["name"], **shape), record["conversion"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConversionError(f"{path} does not fit its record: {str(error).splitlines()[-1].strip()[:160]}") from None
    return model
