"""What convert and fold share: the layers of a model, which can be replaced, and putting others in their places."""

import copy
from collections import defaultdict
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

CARRIED_HOOKS = (  # dictionaries that move with a layer, so that handles that were given out still remove their hook
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
REFUSED_HOOKS = (  # they speak of parameters that the new layer does not have
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class ConversionError(ValueError):
    """A model cannot be converted, folded or exported; str() is one line with the layer, the reason and the cure."""


def layers_of(model, kind):
    """{name: layer} of all modules of a type; those that stand in several places under their first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def adds_nothing(layer):
    """True for an nn.Conv2d, or a subclass of it that computes the same of the same two parameters."""
    kind = type(layer)
    computes = all(getattr(kind, name) is getattr(nn.Conv2d, name) for name in ("forward", "_conv_forward", "__call__"))
    return computes and set(layer._parameters) == {"weight", "bias"} and not layer._buffers and not layer._modules


def check_model(model):
    """Refuse what no layer of can be replaced.

    Raises:
        ConversionError: for a compiled, scripted or wrapped model, or one of which not all parameters exist yet.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"expected an nn.Module, got {type(model).__name__}")
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(model, wrappers):
        raise ConversionError(f"the model is wrapped in {type(model).__name__}: convert model.module and wrap it again")
    if hasattr(model, "_orig_mod"):
        raise ConversionError("the model has been compiled: convert it before torch.compile")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{_called(name)} is scripted or traced: convert the model before torch.jit")
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ConversionError(f"{_called(name)} is lazy: run one batch through the model first")


def check_layer(name, layer, model):
    """Refuse a layer that cannot be replaced without changing what the model is.

    Raises:
        ConversionError: for parametrized and weight-normed layers, for layers or weights that stand in several places,
            weights with hooks, values that are not finite, the meta device.
    """
    if parametrize.is_parametrized(layer):
        raise ConversionError(
            f"{_called(name)} is parametrized: torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        )
    if isinstance(layer, nn.Conv2d) and "weight" not in layer._parameters:
        raise ConversionError(
            f"{_called(name)} has its weight computed by a hook (weight norm, spectral norm or pruning): "
            "remove that with its own remove function first"
        )
    where = [place for place, module in model.named_modules(remove_duplicate=False) if module is layer]
    if len(where) > 1:
        raise ConversionError(f"one convolution stands in several places ({', '.join(where)}): skip it, or copy it")
    for key, parameter in layer.named_parameters(recurse=False):
        users = [place for place, other in model.named_parameters(remove_duplicate=False) if other is parameter]
        if len(users) > 1:
            raise ConversionError(f"one parameter stands in several places ({', '.join(users)}): skip these layers")
        if parameter.is_meta:
            raise ConversionError(f"{_called(name)} lies on the meta device and has no weights yet: load them first")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ConversionError(f"{key} of {_called(name)} has hooks, which a new parameter cannot keep: remove them")
        if not parameter.isfinite().all():
            raise ConversionError(f"{key} of {_called(name)} holds values that are not finite")
    for hooks in REFUSED_HOOKS:
        if getattr(layer, hooks):
            raise ConversionError(f"{_called(name)} has hooks on its state_dict, which name its weight: remove them")


def copy_of(model):
    """A deep copy.

    Raises:
        ConversionError: where the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a module holds may fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"the model cannot be copied ({reason}): give inplace=True") from None


@contextmanager
def watched(model, layers, note):
    """While it lasts the model is in eval mode, and `note(name, layer, output)` is called for each pass of a layer."""

    def hook(name):
        return lambda layer, _, output: note(name, layer, output)

    modes = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def replace(model, replacements):
    """Put new modules in the places of old ones.

    Args:
        model (nn.Module): changed in place, except where it is itself replaced.
        replacements (dict[nn.Module, nn.Module]): new by old; hooks and mode go over to the new one.

    Returns:
        nn.Module: the model, or what it is replaced by.
    """
    for old, new in replacements.items():
        for hooks in CARRIED_HOOKS:
            setattr(new, hooks, getattr(old, hooks))
        new.train(old.training)
    places = defaultdict(list)
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child in replacements:
                places[parent].append((key, replacements[child]))
    for parent, children in places.items():
        for key, new in children:
            setattr(parent, key, new)
    return replacements.get(model, model)


def _called(name):
    return f"layer {name!r}" if name else "the model"
