"""Networks and their weights by name: a class in a file, torchvision's, timm's; a state_dict or a checkpoint."""

import pickle
import runpy
import sys
import warnings
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn as nn

from linearconv_convert.convert import convert
from linearconv_convert.report import Report
from linearconv_convert.surgery import ConversionError, ConversionWarning, first_line

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of torchvision's googlenet and inception_v3, which only training has
CHECKPOINT_KEYS = ("model", "state_dict", "model_state_dict")  # under which training scripts save a network's state


def load_network(spec: str, *, in_channels: int = 3, num_classes: int | None = None) -> nn.Module:
    """Build a network with random weights.

    Args:
        spec: `FILE.py:NAME`, `torchvision:NAME` or `timm:NAME`.
        in_channels: of its images.
        num_classes: of its outputs; its own default where left out.

    Raises:
        ConversionError: where there is no such file, package, or network, or it does not take these arguments.
    """
    source, _, name = spec.rpartition(":")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if source.endswith(".py"):
        return _from_file(Path(source), name, classes | ({} if in_channels == 3 else {"in_channels": in_channels}))
    if source not in ("torchvision", "timm"):
        raise ConversionError(f"{spec!r} is not FILE.py:NAME, torchvision:NAME or timm:NAME")
    try:
        if source == "timm":
            from timm import create_model, list_models

            build, options = create_model, {"in_chans": in_channels}
        else:
            from torchvision.models import get_model, list_models

            build, options = get_model, {"weights": None}
    except ImportError as error:
        raise ConversionError(f"{spec} needs the package {source}: pip install {source} ({error})") from None
    try:
        if source == "torchvision" and in_channels != 3:
            raise ValueError("its networks take images of 3 channels")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of how some draw their initial weights
            model = build(name, **options, **classes)
    except Exception as error:  # names, numbers of classes and so on are refused in many ways
        close = [] if name in list_models() else get_close_matches(name, list_models())
        hint = f"; there is {', '.join(close)}" if close else ""
        raise ConversionError(f"{source} cannot build {name}: {first_line(error)}{hint}") from None
    return _without_auxiliary_heads(model) if source == "torchvision" else model


def load_weights(model: nn.Module, path: str | Path, num_classes: int | None = None) -> list[str]:
    """Load a state_dict, or a checkpoint that holds one, from a file that torch.save wrote; no code in it is run.

    Args:
        model: the network.
        path: of the file.
        num_classes: of the model, where the file's may have another number of them: then parameters of which the
            classes alone differ, a classifier's, stay as they are.

    Returns:
        The names of the parameters that were left as they are.

    Raises:
        ConversionError: for a file that cannot be read or does not fit, naming the first difference.
        OSError: where there is no such file.
    """
    state = state_of(load_tensors(path), path)
    own = model.state_dict()
    state = {key: value for key, value in state.items() if key in own or key.partition(".")[0] not in AUXILIARY}
    left = [key for key in own if key in state and _differ_in_classes(own[key], state[key], num_classes)]
    try:
        model.load_state_dict(state | {key: own[key] for key in left})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        hint = "; it is of a LinearConv network already" if any(key.endswith("conv_weights") for key in state) else ""
        raise ConversionError(f"{path} does not fit the network: {lines[min(1, len(lines) - 1)][:160]}{hint}") from None
    return left


def state_of(content: object, path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state_dict in what a file holds: itself, or what it has under one of `CHECKPOINT_KEYS`.

    Raises:
        ConversionError: where there is none.
    """
    state = next((content[key] for key in CHECKPOINT_KEYS if isinstance(content, dict) and key in content), content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(f"{path} holds no state_dict")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _differ_in_classes(ours, theirs, num_classes):
    """True for parameters (num_classes, ...) and (another number, ...)."""
    return ours.ndim > 0 and ours.shape != theirs.shape and ours.shape == (num_classes, *theirs.shape[1:])


def _without_auxiliary_heads(model):
    """The network with one output in training too."""
    for head in AUXILIARY:
        if getattr(model, head, None) is not None:
            setattr(model, head, None)
            model.aux_logits = False
    return model


def load_tensors(path: str | Path) -> object:
    """Return the tensors and plain containers that torch.save wrote, on the CPU; anything else is a ConversionError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{path} cannot be read as tensors ({first_line(error)[:120]})") from None


def _from_file(path, name, arguments):
    if not path.is_file():
        raise ConversionError(f"there is no file {path}")
    sys.path.insert(0, str(path.resolve().parent))  # for what it imports from beside it
    try:
        defined = runpy.run_path(str(path), run_name="network")
    except Exception as error:  # a user's file may fail in any way
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
        raise ConversionError(f"{name} of {path} gives a {type(model).__name__}, not a network")
    return model


RECORD = "network"  # key of a checkpoint
AVERAGE = "average"  # key of averaged weights, which stand for the network where there are any


def setting_of(report: Report, type: str) -> dict[str, object]:
    """Return the arguments with which :func:`convert` makes the layers of a conversion again, whatever chose them."""
    variants = {layer.name: layer.variant for layer in report.converted}
    ranks = {} if type == "sparse" else {"rank": {name: variant.rank for name, variant in variants.items()}}
    shared = {(variant.sparsity, variant.compute) for variant in variants.values()}
    sparsity, compute = shared.pop() if shared else (None, "auto")
    alphas = {name: variant.alpha for name, variant in variants.items()}
    return {"type": type, "include": list(variants), "alpha": alphas, **ranks, "sparsity": sparsity, "compute": compute}


def convert_again(model: nn.Module, setting: dict[str, object] | None) -> nn.Module:
    """Return a network with the layers of a recorded conversion, at their initial weights.

    Args:
        model: the network as it was before; not changed.
        setting: of :func:`setting_of`; None for none.
    """
    if setting is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # was told the first time
        return convert(model, **setting, grow=True, init="scratch")


def read_record(path: str | Path) -> dict[str, object]:
    """Return the record in a checkpoint.

    Raises:
        ConversionError: where there is none.
    """
    content = load_tensors(path)
    record = content.get(RECORD) if isinstance(content, dict) else None
    if not isinstance(record, dict) or "conversion" not in record:
        raise ConversionError(f"{path} does not say which network it is of: give it as --weights of one")
    return record


def load_converted(path: str | Path) -> nn.Module:
    """Return the network of a checkpoint with its weights, the averaged ones where it has them.

    Args:
        path: of a file with a state_dict and, under `RECORD`, a record.

    Raises:
        ConversionError: for a file without these, or a network that its library does not have.
        OSError: where there is no such file.
    """
    record, content = read_record(path), load_tensors(path)
    state = state_of(content.get(AVERAGE, content), path)
    state.pop("n_averaged", None)  # of torch's AveragedModel
    shape = {name: record[name] for name in ("in_channels", "num_classes")}
    model = convert_again(load_network(record["name"], **shape), record["conversion"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConversionError(f"{path} does not fit its record: {str(error).splitlines()[-1].strip()[:160]}") from None
    return model
