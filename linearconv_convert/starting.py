"""Initial weights other than the published ones, from which LinearConv layers may learn better.

published   the layer's own: Xavier uniform primary filters, coefficients U(-0.1, 0.1)
balanced    the same primary filters; coefficients of Var(A) = 1 / P, so that secondary filters start as large as
            primary ones (with the published start they have 0.06 to 0.9 of their norm)
spectral    the best LinearConv of filters drawn as nn.Conv2d draws them (Khodak et al., "Initialization and
            Regularization of Factorized Neural Layers", ICLR 2021, arXiv 2105.01029)
"""

import torch
import torch.nn as nn

from linearconv import GEOMETRY, LinearConv
from linearconv_convert.carrying import fit
from linearconv_convert.surgery import layers_of

STARTS = ("published", "balanced", "spectral")


@torch.no_grad()
def initialise(model: nn.Module, start: str) -> nn.Module:
    """Draw the parameters of all LinearConv layers in `model` anew, in place, and return it.

    Args:
        model: a network, or a layer.
        start: one of `STARTS`.

    Raises:
        ValueError: for any other.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    for layer in layers_of(model, LinearConv).values():
        layer.reset_parameters()
        if start == "balanced":
            balance(layer)
        elif start == "spectral":
            bias, device, dtype = layer.bias is not None, layer.conv_weights.device, layer.conv_weights.dtype
            geometry = {name: getattr(layer, name) for name in GEOMETRY}
            fit(layer, nn.Conv2d(**geometry, bias=bias, device=device, dtype=dtype), prune=False)
    return model


def balance(layer: LinearConv) -> None:
    """Draw the factors of A from U(-b, b), such that secondary filters are on average as large as primary ones.

    For n factors with inner dimensions d_1 ... d_n, the last one P, that takes a variance of (d_1 ... d_n)^(-1/n) each.
    """
    shapes = [factor.shape for factor in layer.factors()]
    inner = 1
    for _, columns in shapes:
        inner *= columns
    if inner == 0:
        return
    bound = (3 * inner ** (-1 / len(shapes))) ** 0.5
    for name, parameter in layer.named_parameters(recurse=False):
        if name not in ("conv_weights", "bias"):
            nn.init.uniform_(parameter, -bound, bound)
