"""Layers of a model by name, glob pattern, type or function, and settings that are given by such names."""

import fnmatch
from collections.abc import Callable

import torch.nn as nn

from linearconv_convert.surgery import ConversionError

Choice = str | type | Callable[[str, nn.Module], bool]
Selection = Choice | list[Choice] | tuple[Choice, ...] | set[Choice] | frozenset[Choice]


def names_of(model: nn.Module, layers: dict[str, nn.Module], selection: Selection, argument: str) -> set[str]:
    """Return the names of the layers that a selection stands for; a module's name or type stands for all in it.

    Args:
        model: whose modules are named.
        layers: {name: layer} to choose from.
        selection: one, or several, of names, patterns, types and functions.
        argument: what the selection is called in an error.

    Raises:
        ConversionError: for a name that fits no module, or anything that is no selection.
    """
    modules, found = dict(model.named_modules()), set()
    for item in selection if isinstance(selection, (list, tuple, set, frozenset)) else [selection]:
        if isinstance(item, str):
            parents = [name for name in modules if fnmatch.fnmatchcase(name, item)]
            if not parents:
                raise ConversionError(f"{argument}: no module of the model is called {item!r}")
        elif isinstance(item, type):
            parents = [name for name, module in modules.items() if isinstance(module, item)]
        elif callable(item):
            parents = [name for name, layer in layers.items() if item(name, layer)]
        else:
            raise ConversionError(f"{argument} takes names, patterns, types or functions (name, layer), got {item!r}")
        found |= {name for name in layers if any(f"{name}.".startswith(f"{parent}.") for parent in parents)}
    return found


def values_by_name(
    model: nn.Module, layers: dict[str, nn.Module], given: float | dict[str, float] | None, argument: str
) -> dict[str, float | None]:
    """Return {name: value} of a setting that is given once for all layers, or by their names and patterns.

    Of a dict the first entry that fits a layer counts; what none fits gets None.

    Raises:
        ConversionError: for an entry that fits no module, or no layer that is left.
    """
    if not isinstance(given, dict):
        return dict.fromkeys(layers, given)
    values, left = dict.fromkeys(layers), dict(layers)
    for item, value in given.items():
        found = names_of(model, layers, item, argument)
        if found and not found & left.keys():
            raise ConversionError(f"{argument}: other entries stand before {item!r} and take all of its layers")
        for name in found & left.keys():
            values[name] = value
            del left[name]
    return values
