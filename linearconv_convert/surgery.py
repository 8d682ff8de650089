"""Layers of a model: selection, checks of models and layers that cannot be replaced, and replacement."""

import copy
import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn as nn
from torch import fx
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

STATE_HOOKS = [name for name in vars(nn.Module()) if "state_dict" in name]  # refer to parameters of the old layer
OTHER_HOOKS = [name for name in vars(nn.Module()) if "hook" in name and name not in STATE_HOOKS]

Choice = str | type | Callable[[str, nn.Module], bool]
Selection = Choice | Collection[Choice]


class ConversionError(ValueError):
    """A model cannot be converted, folded or exported; str() is one line with the layer, the reason and a remedy."""


class ConversionWarning(UserWarning):
    """The result is incomplete, or worse than possible; str() is one line with the reason and a remedy."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:250]


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, with attributes of parameters and stored activations, or raise ConversionError."""
    stored = [leaf for module in model.modules() for leaf in tree_leaves(list(vars(module).values()))]
    activations = [leaf for leaf in stored if isinstance(leaf, torch.Tensor) and not leaf.is_leaf]
    try:
        copied = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in activations})
    except Exception as error:  # attributes of a module may raise any error
        raise ConversionError(f"the model cannot be copied: {first_line(error)}") from None
    for parameter, new in zip(model.parameters(), copied.parameters(), strict=True):
        vars(new).update(vars(parameter))
    return copied


def layers_of(model: nn.Module, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """Return {name: layer} of all modules of a type; a shared module is listed once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def select(model: nn.Module, layers: dict[str, Any], selection: Selection, argument: str) -> dict[str, Any]:
    """Return the selected ones of {name: layer}. The name or type of a module selects all layers in the module."""
    modules: dict[str, Any] = dict(model.named_modules())
    found: dict[str, Any] = {}
    for item in selection if isinstance(selection, Collection) and not isinstance(selection, str) else [selection]:
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
    model: nn.Module, names: Iterable[str], given: float | dict[str, float] | None, argument: str
) -> dict[str, float | None]:
    """Return {name: value} of a setting that is given once for all layers `names`, or in a dict by names and patterns.

    The first entry of the dict that matches a layer applies. The value of a layer without a matching entry is None.
    """
    if not isinstance(given, dict):
        return dict.fromkeys(names, given)
    layers = {name: model.get_submodule(name) for name in names}
    values: dict[str, float | None] = dict.fromkeys(layers)
    for item, value in reversed(given.items()):
        values |= dict.fromkeys(select(model, layers, item, argument), value)
    return values


def is_patched(layer: nn.Module) -> bool:
    """Return True if a method was replaced on this instance, for example by `layer.forward = ...`."""
    own = vars(layer).items()
    return any(callable(value) and callable(getattr(type(layer), name, None)) for name, value in own)


def check_model(model: nn.Module) -> None:
    """Raise a ConversionError for a compiled, scripted or wrapped model, or a model with uninitialised parameters."""
    if not isinstance(model, nn.Module):
        raise ConversionError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(model, "_orig_mod"):
        raise ConversionError(f"the model is wrapped in {type(model).__name__}: convert the model inside")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"layer {name!r} is scripted or traced: convert the model before torch.jit")
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise ConversionError(f"layer {name!r} is lazy: run one batch through the model first")


def reason_to_keep(layer: nn.Module, uses: Counter[nn.Parameter]) -> str:
    """Return the reason why a layer cannot be replaced, or an empty string; `uses` counts the layers of a parameter."""
    parameters = list(layer.parameters(recurse=False))
    if is_patched(layer):
        return "has a method of its own, set on the instance"
    if set(layer._parameters) != {"weight", "bias"}:
        return "has other parameters than weight and bias (remove parametrizations and weight norm first)"
    if any(uses[parameter] > 1 for parameter in parameters):
        return "shares a parameter with another layer"
    if layer.weight.is_meta:
        return "is on the meta device"
    if any(parameter.is_complex() for parameter in parameters):
        return "has complex filters"  # the fits are of real matrices
    if not all(parameter.isfinite().all() for parameter in parameters):
        return "has values that are not finite"
    hooks = [getattr(layer, name) for name in STATE_HOOKS]
    hooks += [each for p in parameters for each in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    return "has hooks on its parameters or its state_dict, which would be lost" if any(hooks) else ""


@contextmanager
def eval_with_hooks(model: nn.Module, layers: dict[str, nn.Module], hook: Any = None) -> Iterator[None]:
    """In this context, keep a model in eval mode and call `hook(name, layer, output)` after each forward of a layer."""
    modes = {module: module.training for module in model.modules()}
    handles = []
    for name, layer in layers.items():
        handles.append(layer.register_forward_hook(lambda layer, _, output, name=name: hook(name, layer, output)))
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()


def replace(model: nn.Module, replacements: dict[nn.Module, Any]) -> Any:
    """Replace modules {old: new} of a model in place, and return the model, or its own replacement.

    The new modules get the hooks, the mode and the other public attributes of the old ones. References in attributes
    are replaced too, such as `self.convs = [self.conv1]` or `self.op = self.conv1.forward`.
    """
    for old, new in replacements.items():
        for hooks in OTHER_HOOKS:
            setattr(new, hooks, getattr(old, hooks))  # the same dictionaries, so that handles still remove the hooks
        taken = {*vars(new), *new._parameters, *new._modules}
        moved = {name: value for name, value in vars(old).items() if not name.startswith("_") and name not in taken}
        vars(new).update(moved)
        if isinstance(new, fx.GraphModule):
            new.meta["_user_preserved_attributes"] = moved  # deep copies lose all other attributes
        new.train(old.training)
    own = vars(nn.Module()).keys()  # attributes that every module has
    for parent in list(model.modules()):
        children: dict[str, Any] = parent._modules
        children.update({name: replacements.get(child, child) for name, child in children.items()})
        for name, value in [item for item in vars(parent).items() if item[0] not in own]:
            leaves = tree_leaves(value)
            found = [_replaced(leaf, replacements) for leaf in leaves]
            if any(new is not old for new, old in zip(found, leaves, strict=True)):
                setattr(parent, name, tree_unflatten(found, tree_structure(value)))
    return replacements.get(model, model)


def _replaced(reference, replacements):
    """The new module for a reference to an old one, or the new method for a method; any other object is returned."""
    owner = reference.__self__ if isinstance(reference, MethodType) else reference
    if not isinstance(owner, nn.Module) or owner not in replacements:
        return reference
    new = replacements[owner]
    return new if owner is reference else getattr(new, reference.__name__, reference)
