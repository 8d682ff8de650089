"""Folding of LinearConv to nn.Conv2d, and of BatchNorm into the preceding convolution."""

import warnings
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn as nn
from torch.fx import Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval

from linearconv import LinearConv
from linearconv_convert import surgery
from linearconv_convert.adapters import SamePad2d, split_padding
from linearconv_convert.surgery import ConversionError, ConversionWarning, is_patched, layers_of


def fold(model: nn.Module, *, batch_norm: bool = False, inplace: bool = False) -> nn.Module:
    """Replace every LinearConv of a model by the equivalent nn.Conv2d; outputs are equal up to rounding.

    Args:
        model: any model.
        batch_norm: also fold every nn.BatchNorm2d, nn.SyncBatchNorm and torchvision FrozenBatchNorm2d into the
            preceding convolution, if the BatchNorm is the only user of the convolution's output. An nn.Identity
            replaces the BatchNorm, or the activation that a subclass applies after it (timm's BatchNormAct2d). The
            model must be in eval mode and traceable by torch.fx, at least outside of modules without BatchNorm. Layers
            with hooks are not folded. A convolution that pads its input, such as timm's Conv2dSame, becomes an
            nn.Sequential of a padding module and the convolution. If there are BatchNorms and none is folded, a
            ConversionWarning gives the reason.
        inplace: change the model in place.

    Returns:
        The folded model; an nn.Conv2d for a LinearConv. Layers with a method replaced on the instance are not folded.

    Raises:
        ConversionError: for a model that is scripted, compiled, wrapped or lazy; with `batch_norm` also for a model
            that is in training mode or cannot be traced. The model is unchanged.
    """
    surgery.check_model(model)
    if inplace and isinstance(model, LinearConv):
        raise ConversionError("the model is itself a LinearConv and cannot be replaced in place: give inplace=False")
    if batch_norm and model.training:
        raise ConversionError("BatchNorm can be folded in eval mode only, as it changes in training: call model.eval()")
    return replace_layers(model if inplace else surgery.copy_of(model), fuse, batch_norm)


def fuse(layer: LinearConv, norm: nn.BatchNorm2d | None = None) -> nn.Conv2d:
    """Return the nn.Conv2d that is equivalent to a layer, or to a layer followed by a BatchNorm."""
    return layer.fuse() if norm is None else fuse_conv_bn_eval(layer.fuse(), norm)


def replace_layers(
    model: nn.Module, new_layer: Callable[[LinearConv, nn.BatchNorm2d | None], nn.Module | None], batch_norm: bool
) -> nn.Module:
    """Replace every LinearConv of a model in place, optionally fold BatchNorm into convolutions, and return the model.

    Args:
        model: the model, in eval mode if `batch_norm` is set.
        new_layer: returns the replacement of a LinearConv and, if given, the BatchNorm after it; None if the BatchNorm
            cannot be folded.
        batch_norm: see :func:`fold`.

    Raises:
        ConversionError: if `batch_norm` is set and the model cannot be traced. The model is unchanged.
    """
    pairs = _convolutions_before_batch_norms(model) if batch_norm else []
    own = [layer for layer in layers_of(model, LinearConv).values() if not is_patched(layer)]
    replacements = {layer: new_layer(layer, None) for layer in own}
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        folded = new_layer(conv, norm) if isinstance(conv, LinearConv) else _fold_into_conv2d(conv, norm)
        if folded is not None:
            replacements |= {conv: folded, norm: _after_batch_norm(norm)}
    norms = [module for module in model.modules() if _is_batch_norm(module)]
    if batch_norm and norms and not pairs:
        reason = "none of them is certain to be alone in taking the output of a convolution without hooks"
        warnings.warn(f"no BatchNorm was folded: of {len(norms)}, {reason}", ConversionWarning, stacklevel=3)
    return surgery.replace(model, replacements)


class _DownToLayers(Tracer):
    """A tracer that traces the code of all modules except layers."""

    def is_leaf_module(self, module, qualified_name):
        is_layer = isinstance(module, (LinearConv, SamePad2d, nn.Conv2d)) or _is_batch_norm(module)  # or a subclass
        return is_layer or super().is_leaf_module(module, qualified_name)


class _DownToBatchNorm(Tracer):
    """A tracer that traces only modules that contain a BatchNorm; the others need not be traceable."""

    def is_leaf_module(self, module, qualified_name):
        inside = (child for child in module.modules() if child is not module)
        return not any(_is_batch_norm(child) for child in inside)


def _is_batch_norm(module):
    """True for BatchNorm2d, SyncBatchNorm and torchvision's FrozenBatchNorm2d, which are affine in eval mode."""
    return isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) or type(module).__name__ == "FrozenBatchNorm2d"


def _convolutions_before_batch_norms(model):
    """Names (convolution, BatchNorm) of all pairs whose BatchNorm is the only user of the convolution's output."""
    if not any(_is_batch_norm(module) for module in model.modules()):
        return []
    graph = _trace(model)
    calls = {node: model.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    uses = Counter(calls.values())
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    pairs = []
    for node, norm in calls.items():
        before = node.args[0] if node.args else None
        if _is_batch_norm(norm) and before in calls and len(before.users) == 1:
            conv = calls[before]
            if uses[conv] == uses[norm] == names[conv] == names[norm] == 1 and _can_be_folded(conv, norm):
                pairs.append((before.target, node.target))
    return pairs


def _trace(model):
    """The graph of a copy of the model; a forward pass may store proxies of the tracer on the copy."""
    errors = []
    for tracer in (_DownToLayers, _DownToBatchNorm):
        try:
            return tracer().trace(surgery.copy_of(model))
        except Exception as error:  # any operation in forward may raise for a proxy
            errors.append(error)
    reason = f"cannot be traced by torch.fx to find its normalised convolutions ({surgery.first_line(errors[-1])})"
    raise ConversionError(f"the model {reason}")


def _can_be_folded(conv, norm):
    is_convolution = isinstance(conv, LinearConv) or (isinstance(conv, nn.Conv2d) and split_padding(conv))
    has_hooks = any(layer._forward_hooks or layer._forward_pre_hooks for layer in (conv, norm))
    is_fixed = norm.running_mean is not None and not norm.training
    is_unchanged = not is_patched(conv) and not is_patched(norm)
    return is_convolution and is_fixed and is_unchanged and not has_hooks and _after_batch_norm(norm) is not None


@torch.no_grad()
def _after_batch_norm(norm):
    """The modules that a subclass of BatchNorm2d, such as timm's BatchNormAct2d, applies after the normalisation.

    None if a random input shows that the subclass computes anything else.
    """
    if type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) or not isinstance(norm, nn.BatchNorm2d):
        return nn.Identity()
    rest = nn.Sequential(*norm.children())
    images = torch.randn(2, norm.num_features, 3, 5, generator=torch.Generator().manual_seed(0)).to(norm.running_mean)
    try:
        same = torch.allclose(norm(images), rest(nn.BatchNorm2d.forward(norm, images)), rtol=1e-5, atol=1e-6)
    except Exception:  # a subclass may raise any error
        return None
    return rest if same else None


def _fold_into_conv2d(conv, norm):
    pad, plain = split_padding(conv)
    folded = fuse_conv_bn_eval(plain, norm)
    return folded if pad is None else nn.Sequential(pad, folded)
