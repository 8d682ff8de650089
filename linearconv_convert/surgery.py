"""Replacing layers of a model: finding them, refusing those that cannot be replaced, putting others in their places."""

import copy
import fnmatch
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn as nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

# Dictionaries of hooks. Those of a layer's state_dict speak of parameters that the new layer does not have, the others
# move with the layer, so that handles that were given out still remove their hook.
STATE_HOOKS = [name for name in vars(nn.Module()) if "state_dict" in name]
CARRIED_HOOKS = [name for name in vars(nn.Module()) if "hook" in name and name not in STATE_HOOKS]


class ConversionError(ValueError):
    """A model cannot be converted, folded or exported; str() is one line with the layer, the reason and the cure."""


class ConversionWarning(UserWarning):
    """Less was done than was asked for, or worse than it could be; str() is one line with the reason and the cure."""


def layers_of(model: nn.Module, kind: type | tuple[type, ...]) -> dict[str, nn.Module]:
    """Return {name: layer} of all modules of a type; a shared one once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def is_plain_conv2d(layer: nn.Module) -> bool:
    """Return True for an nn.Conv2d, or a subclass of it that computes the same of the same two parameters."""
    computing = ("forward", "_conv_forward", "__call__")
    inherits = all(getattr(type(layer), name, None) is getattr(nn.Conv2d, name) for name in computing)
    return inherits and set(layer._parameters) == {"weight", "bias"} and not layer._buffers and not layer._modules


def check_model(model: nn.Module) -> None:
    """Refuse a model of which no layer can be replaced.

    Raises:
        ConversionError: for a compiled, scripted or wrapped model, or one of which not all parameters exist yet.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ConversionError(f"the model is wrapped in {type(model).__name__}: convert model.module and wrap it again")
    if hasattr(model, "_orig_mod"):
        raise ConversionError("the model has been compiled: convert it before torch.compile")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{_called(name)} is scripted or traced: convert the model before torch.jit")
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ConversionError(f"{_called(name)} is lazy: run one batch through the model first")


def check_layer(name: str, layer: nn.Module, model: nn.Module) -> None:
    """Refuse a layer, called `name` in its model, that cannot be replaced without changing what the model is.

    Raises:
        ConversionError: for parametrized and weight-normed layers, shared layers and weights, hooks on weights or on
            the state_dict, values that are not finite, the meta device.
    """
    where = _called(name)
    if parametrize.is_parametrized(layer):
        raise ConversionError(f"{where} is parametrized: parametrize.remove_parametrizations of torch makes it plain")
    if isinstance(layer, nn.Conv2d) and "weight" not in layer._parameters:
        hooks = "a hook (weight norm, spectral norm or pruning)"
        raise ConversionError(f"{where} has its weight computed by {hooks}: remove that with its own remove function")
    if any(getattr(layer, hooks) for hooks in STATE_HOOKS):
        raise ConversionError(f"{where} has hooks on its state_dict, which name its weight: remove them")
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    if len(names) > 1:
        raise ConversionError(f"one convolution stands in several places ({', '.join(names)}): skip it, or copy it")
    for key, parameter in layer.named_parameters(recurse=False):
        names = [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
        if len(names) > 1:
            raise ConversionError(f"one parameter stands in several places ({', '.join(names)}): skip these layers")
        if parameter.is_meta:
            raise ConversionError(f"{where} lies on the meta device and has no weights yet: load them first")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ConversionError(f"{key} of {where} has hooks, which a new parameter cannot keep: remove them")
        if not parameter.isfinite().all():
            raise ConversionError(f"{key} of {where} holds values that are not finite")


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy; a ConversionError where the model cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a module holds may fail in any way
        raise ConversionError(f"the model cannot be copied ({first_line(error)}): give inplace=True") from None


@contextmanager
def eval_with_hooks(
    model: nn.Module, layers: dict[str, nn.Module], hook: Callable[[str, nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """Hold a model in eval mode and call `hook(name, layer, output)` after each forward of a layer; undo both after."""
    with ExitStack() as undoing:
        for module in model.modules():
            undoing.callback(setattr, module, "training", module.training)
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda layer, _, output, name=name: hook(name, layer, output))
            undoing.callback(handle.remove)
        model.eval()
        yield


def replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the places of old ones {old: new}, with their hooks and modes, and return the model.

    It is changed in place, except where it is itself replaced; then its replacement is returned.
    """
    for old, new in replacements.items():
        for hooks in CARRIED_HOOKS:
            setattr(new, hooks, getattr(old, hooks))
        new.train(old.training)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _called(name):
    return f"layer {name!r}" if name else "the model"


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
