"""Layers of a model: selection, checks of models and layers that cannot be converted, and replacement."""

import copy
import fnmatch
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType

import torch
import torch.nn as nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

# Hooks on the state_dict refer to parameters that a new layer does not have. All other hooks move to the new layer, in
# the same dictionaries, so that existing handles still remove their hooks.
STATE_HOOKS = [name for name in vars(nn.Module()) if "state_dict" in name]
CARRIED_HOOKS = [name for name in vars(nn.Module()) if "hook" in name and name not in STATE_HOOKS]
THOP_BUFFERS = {"total_ops", "total_params"}  # buffers that thop adds to layers

Choice = str | type | Callable[[str, nn.Module], bool]
Selection = Choice | list[Choice] | tuple[Choice, ...] | set[Choice] | frozenset[Choice]


class ConversionError(ValueError):
    """A model cannot be converted, folded or exported; str() is one line with the layer, the reason and a remedy."""


class ConversionWarning(UserWarning):
    """The result is incomplete, or worse than possible; str() is one line with the reason and a remedy."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Raises:
        ConversionError: if the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # attributes of a module may raise any error
        raise ConversionError(f"the model cannot be copied ({first_line(error)}): give inplace=True") from None


# ---- finding layers --------------------------------------------------------------------------------------------------


def layers_of(model: nn.Module, kind: type | tuple[type, ...]) -> dict[str, nn.Module]:
    """Return {name: layer} of all modules of a type; a shared module is listed once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def select(model: nn.Module, layers: dict[str, nn.Module], selection: Selection, argument: str) -> dict[str, nn.Module]:
    """Return the selected layers. The name or type of a module selects all layers in the module.

    Args:
        model: the model, whose modules the names and types refer to.
        layers: {name: layer} to select from.
        selection: one or several names, patterns, types and functions (name, layer).
        argument: name of the selection in error messages.

    Raises:
        ConversionError: for a name without a module, or an item that is not a selection.
    """
    modules, found = dict(model.named_modules()), {}
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
        prefixes = tuple(f"{parent}." if parent else "" for parent in parents)
        found |= {name: layer for name, layer in layers.items() if f"{name}.".startswith(prefixes)}
    return found


def values_by_name(
    model: nn.Module, layers: dict[str, nn.Module], given: float | dict[str, float] | None, argument: str
) -> dict[str, float | None]:
    """Return {name: value} of a setting that is given once for all layers, or in a dict by names and patterns.

    The first entry of the dict that matches a layer applies. The value of a layer without a matching entry is None.

    Raises:
        ConversionError: for an entry that matches no module, or whose layers all have values from earlier entries.
    """
    if not isinstance(given, dict):
        return dict.fromkeys(layers, given)
    values, left = dict.fromkeys(layers), dict(layers)
    for item, value in given.items():
        found = select(model, layers, item, argument)
        if found and not found.keys() & left.keys():
            raise ConversionError(f"{argument}: other entries stand before {item!r} and take all of its layers")
        for name in found.keys() & left.keys():
            values[name] = value
            del left[name]
    return values


def is_patched(layer: nn.Module) -> bool:
    """Return True if a method was replaced on this instance, for example by `layer.forward = ...`."""
    return any(callable(getattr(type(layer), name, None)) for name in vars(layer))


def is_plain_conv2d(layer: nn.Module) -> bool:
    """Return True for an nn.Conv2d, or an instance of a subclass that computes the same from weight and bias."""
    computing = ("forward", "_conv_forward", "__call__")
    inherits = all(getattr(type(layer), name, None) is getattr(nn.Conv2d, name) for name in computing)
    has_more = set(layer._parameters) != {"weight", "bias"} or layer._buffers.keys() - THOP_BUFFERS or layer._modules
    return inherits and not has_more and not is_patched(layer)


# ---- checks of models and layers -------------------------------------------------------------------------------------


def check_model(model: nn.Module) -> None:
    """Check that layers of a model can be replaced.

    Raises:
        ConversionError: for a compiled, scripted or wrapped model, or a model with uninitialised parameters.
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
    """Check that a layer, called `name` in its model, can be replaced without other changes of the model.

    Raises:
        ConversionError: for parametrized and weight-normed layers, shared layers and weights, hooks on weights or on
            the state_dict, values that are not finite, and layers on the meta device.
    """
    where = _called(name)
    if parametrize.is_parametrized(layer):
        raise ConversionError(f"{where} is parametrized: parametrize.remove_parametrizations of torch makes it plain")
    if "weight" not in layer._parameters:
        hooks = "a hook (weight norm, spectral norm or pruning)"
        raise ConversionError(f"{where} has its weight computed by {hooks}: remove that with its own remove function")
    if any(getattr(layer, hooks) for hooks in STATE_HOOKS):
        raise ConversionError(f"{where} has hooks on its state_dict, which name its weight: remove them")
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    if len(names) > 1:
        raise ConversionError(f"one convolution is in several places ({', '.join(names)}): skip it, or copy it")
    for key, parameter in layer.named_parameters(recurse=False):
        names = [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
        if len(names) > 1:
            raise ConversionError(f"one parameter is in several places ({', '.join(names)}): skip these layers")
        if parameter.is_meta:
            raise ConversionError(f"{where} is on the meta device and has no weights yet: load them first")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ConversionError(f"{key} of {where} has hooks, which a new parameter cannot keep: remove them")
        if not parameter.isfinite().all():
            raise ConversionError(f"{key} of {where} has values that are not finite")


def _called(name):
    return f"layer {name!r}" if name else "the model"


# ---- running and replacing layers ------------------------------------------------------------------------------------


@contextmanager
def eval_with_hooks(
    model: nn.Module, layers: dict[str, nn.Module], hook: Callable[[str, nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """In this context, keep a model in eval mode and call `hook(name, layer, output)` after each forward of a layer."""
    with ExitStack() as undoing:
        for module in model.modules():
            undoing.callback(setattr, module, "training", module.training)
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda layer, _, output, name=name: hook(name, layer, output))
            undoing.callback(handle.remove)
        model.eval()
        yield


def replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules {old: new} of a model, keep their hooks and modes, and return the model.

    References in attributes are replaced too, such as `self.convs = [self.conv1]` or `self.op = self.conv1.forward`.
    The model is changed in place. If the model itself is replaced, the function returns its replacement.
    """
    for old, new in replacements.items():
        for hooks in CARRIED_HOOKS:
            setattr(new, hooks, getattr(old, hooks))
        new.train(old.training)
    own = vars(nn.Module()).keys()  # attributes that every module has
    for parent in list(model.modules()):
        parent._modules.update({name: replacements.get(child, child) for name, child in parent._modules.items()})
        for name, value in [item for item in vars(parent).items() if item[0] not in own]:
            setattr(parent, name, _with_replaced(value, replacements))
    return replacements.get(model, model)


def _with_replaced(value, replacements):
    """A module, method or plain container with references to the new modules; other values unchanged."""
    if isinstance(value, nn.Module):
        return replacements.get(value, value)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module) and value.__self__ in replacements:
        return getattr(replacements[value.__self__], value.__name__, value)
    if type(value) is dict:
        new = {key: _with_replaced(each, replacements) for key, each in value.items()}
        return new if any(new[key] is not value[key] for key in value) else value
    if type(value) in (list, tuple):
        new = type(value)(_with_replaced(each, replacements) for each in value)
        return new if any(ours is not theirs for ours, theirs in zip(new, value, strict=True)) else value
    return value
