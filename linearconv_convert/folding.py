"""Folding of LinearConv to nn.Conv2d, and of BatchNorm into the preceding convolution."""

import warnings
from collections import Counter
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
import torch.nn as nn
from torch.fx import Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval

from linearconv import LinearConv
from linearconv_convert import surgery
from linearconv_convert.adapters import split
from linearconv_convert.inputs import Verification, known_call
from linearconv_convert.surgery import ConversionError, ConversionWarning, is_patched, layers_of


def fold(
    model: nn.Module, *, batch_norm: bool = False, example_input: object = None, inplace: bool = False
) -> nn.Module:
    """Replace every LinearConv of a model by the equivalent nn.Conv2d; outputs are equal up to rounding.

    Args:
        model: any model.
        batch_norm: also fold every nn.BatchNorm2d, nn.SyncBatchNorm and torchvision FrozenBatchNorm2d into the
            preceding convolution, if nothing else uses the convolution's output or its weight, and the layers have no
            hooks and no method set on the instance. An nn.Identity replaces the BatchNorm, or the activation that a
            subclass applies after it (timm's BatchNormAct2d). The model must be in eval mode, and its modules with a
            BatchNorm inside traceable by torch.fx. If none is folded, a ConversionWarning gives the reason.
        example_input: an input to verify the folded model, as for :func:`linearconv_convert.deploy`.
        inplace: change the model in place.

    Raises:
        ConversionError: for a model that is scripted, compiled, wrapped or lazy, for a folded model with other outputs;
            with `batch_norm` also for a model that is in training mode or cannot be traced. The model is unchanged.
    """
    surgery.check_model(model)
    if inplace and isinstance(model, LinearConv):
        raise ConversionError("the model is itself a LinearConv and cannot be replaced in place: give inplace=False")
    if batch_norm and model.training:
        raise ConversionError("BatchNorm can be folded in eval mode only, as it changes in training: call model.eval()")
    folded = replace_layers(surgery.copy_of(model), fuse, batch_norm)
    verification = Verification(model, known_call(model, example_input))
    verification.warn_if_unknown()
    difference = verification.difference(folded)
    if difference:
        raise ConversionError(f"the folded model is not equal to the model: {difference}")
    return replace_layers(model, fuse, batch_norm) if inplace else folded


def fuse(layer: LinearConv, norm: nn.BatchNorm2d | None = None) -> nn.Conv2d:
    """Return the nn.Conv2d that is equivalent to a layer, or to a layer followed by a BatchNorm."""
    return layer.fuse() if norm is None else fuse_conv_bn_eval(layer.fuse(), norm)


def replace_layers(
    model: nn.Module, new_layer: Callable[[LinearConv, nn.BatchNorm2d | None], nn.Module | None], batch_norm: bool
) -> nn.Module:
    """Replace every LinearConv of a model in place, optionally fold BatchNorm into convolutions, and return the model.

    `new_layer` returns the replacement of a LinearConv and, if given, the BatchNorm after it; None to leave both apart.
    """
    norms = [module for module in model.modules() if batch_norm and _is_batch_norm(module)]
    pairs = _convolutions_before_batch_norms(model) if norms else []
    own = [layer for layer in layers_of(model, LinearConv).values() if not is_patched(layer)]
    replacements: dict[nn.Module, Any] = {layer: new_layer(layer, None) for layer in own}
    for conv, norm in pairs:
        if isinstance(conv, LinearConv):
            folded = new_layer(conv, norm)
        else:
            wrap, plain = split(conv)
            folded = wrap(fuse_conv_bn_eval(plain, norm))
        rest = _after_batch_norm(norm)
        if folded is not None and rest is not None:
            replacements |= {conv: folded, norm: rest}
    if norms and not pairs:
        reason = "none of them is certain to be alone in taking the output of a convolution without hooks"
        warnings.warn(f"no BatchNorm was folded: of {len(norms)}, {reason}", ConversionWarning, stacklevel=3)
    return surgery.replace(model, replacements)


class _Tracer(Tracer):
    """A tracer of modules that contain a BatchNorm, and of nn.Sequential; all other modules need not be traceable."""

    def is_leaf_module(self, module, qualified_name):
        inside = any(_is_batch_norm(child) for child in module.modules() if child is not module)
        return not inside and not isinstance(module, nn.Sequential)


def _is_batch_norm(module):
    """True for BatchNorm2d, SyncBatchNorm and torchvision's FrozenBatchNorm2d, which are affine in eval mode."""
    return isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) or type(module).__name__ == "FrozenBatchNorm2d"


def _convolutions_before_batch_norms(model):
    """Pairs (convolution, BatchNorm) whose BatchNorm alone uses the output, and the convolution alone its weight."""
    parameters = signature(model.forward).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not Parameter.empty}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of defaults that torch.fx does not check
            graph = _Tracer().trace(surgery.copy_of(model), concrete_args=defaults)  # forward may change the copy
    except Exception as error:  # any operation in forward may raise for a proxy
        reason = f"cannot be traced by torch.fx to find its normalised convolutions ({surgery.first_line(error)})"
        raise ConversionError(f"the model {reason}") from None
    calls = {node: model.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    uses = Counter(calls.values())
    uses.update(module for _, module in model.named_modules(remove_duplicate=False))
    pairs = []
    for node, norm in calls.items():
        before = node.args[0] if node.args else None
        if _is_batch_norm(norm) and before in calls and len(before.users) == 1 and before.target not in read:
            conv = calls[before]
            is_convolution = isinstance(conv, LinearConv) or (isinstance(conv, nn.Conv2d) and split(conv))
            is_own = any(is_patched(each) or each._forward_hooks or each._forward_pre_hooks for each in (conv, norm))
            is_fixed = norm.running_mean is not None and not norm.training
            if is_convolution and is_fixed and not is_own and uses[conv] == uses[norm] == 2:  # one name and one call
                pairs.append((conv, norm))
    return pairs


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
