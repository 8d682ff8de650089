"""Networks and their weights by name: a class in a file, torchvision's, timm's; a state_dict or a checkpoint."""

import pickle
import runpy
import sys
from pathlib import Path

import torch
import torch.nn as nn

from linearconv_convert.surgery import ConversionError, first_line

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
            from timm import create_model

            return create_model(name, in_chans=in_channels, **classes)
        from torchvision.models import get_model

        if in_channels != 3:
            raise ValueError("its networks take images of 3 channels")
        return get_model(name, weights=None, **classes)
    except ImportError as error:
        raise ConversionError(f"{spec} needs the package {source}: pip install {source} ({error})") from None
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConversionError(f"{source} cannot build {name}: {error}") from None


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state_dict, or a checkpoint that holds one, from a file that torch.save wrote; no code in it is run.

    Raises:
        ConversionError: for a file that cannot be read or does not fit, naming the first difference.
        OSError: where there is no such file.
    """
    state = load_tensors(path)
    state = next((state[key] for key in CHECKPOINT_KEYS if isinstance(state, dict) and key in state), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(f"{path} holds no state_dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        hint = "; it is of a LinearConv network already" if any(key.endswith("conv_weights") for key in state) else ""
        raise ConversionError(f"{path} does not fit the network: {lines[min(1, len(lines) - 1)][:160]}{hint}") from None


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
