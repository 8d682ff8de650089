"""Networks by name, from a file, torchvision or timm; their weights, from a state_dict or a checkpoint with a record.

    record = {"name": "torchvision:resnet18", "in_channels": 3, "num_classes": 10, "image_size": 224}
    record["conversion"] = setting_of(report, "rank")               # None for a network that was not converted
    torch.save({"model": small.state_dict(), "network": record}, "small.pt")

A record has plain values. Loading it executes no user code: the name must be a network of torchvision or timm.
"""

import importlib
import runpy
import sys
import warnings
import zipfile
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from linearconv_convert.balance import balance, unbalance
from linearconv_convert.convert import convert
from linearconv_convert.report import Report
from linearconv_convert.surgery import ConversionError, ConversionWarning, first_line
from linearconv_variants import Variant

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # training heads of torchvision's googlenet and inception_v3
EXTRA = (*AUXILIARY, "aux_classifier", "n_averaged")  # entries of a state_dict that a model may lack
WRAPPERS = ("module", "_orig_mod", "module_orig_mod", "_orig_modmodule")  # of DataParallel, AveragedModel and compile
CHECKPOINT_KEYS = ("average", "model", "state_dict", "model_state_dict")  # of a state_dict in a checkpoint
RECORD = "network"  # key of the record in a checkpoint
RECORD_KEYS = {"name", "in_channels", "num_classes", "image_size", "conversion"}
LIBRARIES = ("torchvision", "timm")


def load_network(spec: str, *, in_channels: int = 3, num_classes: int | None = None) -> nn.Module:
    """Build a network with random weights; nothing is downloaded, but the code of FILE.py is executed."""
    source, _, name = spec.rpartition(":")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if source.endswith(".py"):
        return _from_file(Path(source), name, options | ({} if in_channels == 3 else {"in_channels": in_channels}))
    if source not in LIBRARIES:
        raise ConversionError(f"{spec!r} is not FILE.py:NAME, torchvision:NAME or timm:NAME")
    try:
        library = importlib.import_module("timm" if source == "timm" else "torchvision.models")
    except ImportError as error:
        raise ConversionError(f"{spec} needs the package {source}: pip install {source} ({error})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # warnings about the initial weights of some networks
            if source == "timm":
                return library.create_model(name, in_chans=in_channels, **options)
            if in_channels != 3:
                raise ValueError("its networks take images of 3 channels")
            if "weights_backbone" in signature(library.get_model_builder(name)).parameters:
                options["weights_backbone"] = None  # the default of segmentation and detection downloads weights
            model = library.get_model(name, weights=None, **options)
    except Exception as error:  # invalid names and numbers of classes raise various errors
        raise ConversionError(f"{source} cannot build {name}: {first_line(error)}") from None
    for head in AUXILIARY:  # removed to have one output in training too
        if getattr(model, head, None) is not None:
            setattr(model, head, None)
            model.aux_logits = False
    return model


def _from_file(path, name, arguments):
    sys.path.insert(0, str(path.resolve().parent))  # for imports of modules in the same folder
    try:
        build = runpy.run_path(str(path), run_name="network").get(name)
        model = build and build(**arguments)
    except (Exception, SystemExit) as error:  # a user's file may raise any error
        raise ConversionError(f"{path} cannot build {name}: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise ConversionError(f"{path} has no function or class {name} that returns a network")
    return model


def load_tensors(path: str | Path) -> Any:
    """Return the tensors and containers in a file that torch.save wrote, on the CPU, or raise ConversionError."""
    try:
        if zipfile.is_zipfile(path):  # torch.load does not check the checksums of the archive
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any error
        if isinstance(error, OSError) and error.filename:
            raise
        raise ConversionError(f"{path} cannot be read as tensors ({first_line(error)[:120]})") from None


def load_weights(model: nn.Module, path: str | Path, num_classes: int | None = None) -> list[str]:
    """Load a state_dict, or a checkpoint with a state_dict, from a file of torch.save; no code in it is executed.

    If the model has `num_classes`, and the file another number, the classifier is left unchanged; the function returns
    the names of its parameters. A file that cannot be read, or does not fit, raises a ConversionError.
    """
    content, own, left = load_tensors(path), model.state_dict(), []
    state = next((content[key] for key in CHECKPOINT_KEYS if isinstance(content, dict) and key in content), content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(f"{path} has no state_dict")
    names, found = {key.replace(".", ""): key for key in own}, state  # official files of densenet differ in dots
    for prefix in ("", *WRAPPERS):
        renamed = {names.get(str(key).replace(".", "").removeprefix(prefix), key): state[key] for key in state}
        if len(own.keys() & renamed.keys()) > len(own.keys() & found.keys()):
            found = renamed
    state = {key: value for key, value in found.items() if key in own or str(key).partition(".")[0] not in EXTRA}
    for key in [key for key in own if key in state]:
        ours, theirs = own[key], state[key]
        if ours.is_floating_point() != theirs.is_floating_point() or ours.is_complex() != theirs.is_complex():
            raise ConversionError(f"{path} does not fit the network: {key} is of {theirs.dtype}, not of {ours.dtype}")
        if ours.ndim and ours.shape != theirs.shape and ours.shape == (num_classes, *theirs.shape[1:]):
            left.append(key)  # of shapes (num_classes, ...) and (another number, ...)
    try:
        model.load_state_dict(state | {key: own[key] for key in left})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        hint = "; it is of a LinearConv network already" if any("conv_weights" in key for key in state) else ""
        raise ConversionError(f"{path} does not fit the network: {lines[min(1, len(lines) - 1)][:160]}{hint}") from None
    return left


def setting_of(report: Report, type: str) -> dict[str, Any]:
    """Return the arguments with which :func:`convert` rebuilds the layers of a conversion."""
    variants = {layer.name: layer.variant for layer in report.converted if layer.variant}
    alphas = {name: variant.alpha for name, variant in variants.items()}
    ranks = {name: variant.rank for name, variant in variants.items() if variant.rank is not None}
    shared = next(iter(variants.values()), Variant())  # sparsity and compute are the same for all layers
    common = {"sparsity": shared.sparsity, "compute": shared.compute}
    return {"type": type, "include": list(variants), "alpha": alphas, "rank": ranks, **common}


def convert_again(model: nn.Module, setting: dict[str, Any] | None) -> Any:
    """Return a network with initial weights and the layers of a setting of :func:`setting_of`, if there is one."""
    if setting is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the first conversion has warned already
        return convert(model, **setting, grow=True, init="scratch")


def read_record(path: str | Path) -> dict[str, Any]:
    """Return the record in a checkpoint of a network of torchvision or timm; else raise ConversionError."""
    content = load_tensors(path)
    record = content.get(RECORD) if isinstance(content, dict) else None
    if not isinstance(record, dict) or not RECORD_KEYS <= record.keys():
        raise ConversionError(f"{path} does not say which network it is of: give it as --weights of one")
    if str(record.get("name")).rpartition(":")[0] not in LIBRARIES:
        found = f"{path} names the network {record.get('name')!r}"
        raise ConversionError(f"{found}: only networks of torchvision and timm are built from a file of weights")
    return record


def load_converted(path: str | Path) -> nn.Module:
    """Return the network of a checkpoint with a record, with its weights, or its averaged weights if there are any."""
    record = read_record(path)
    shape = {name: record[name] for name in ("in_channels", "num_classes")}
    model = convert_again(load_network(record["name"], **shape), record["conversion"])
    if record.get("balanced"):  # older checkpoints are not
        balance(model)
    load_weights(model, path)
    return unbalance(model)
