"""Weights carried over from convolutions to the LinearConv layers in their places, one by one or a network's."""

from collections.abc import Callable

import torch
import torch.nn as nn

from linearconv import GEOMETRY, LinearConv
from linearconv_convert import fitting
from linearconv_convert.calibration import Moments
from linearconv_convert.surgery import layers_of
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse


def copy_weights(dense: nn.Module, model: nn.Module) -> None:
    """Give a network with LinearConv layers the weights of the same network with nn.Conv2d in their places.

    Each layer is fitted to the convolution of its name; every other parameter and buffer is copied. Coefficients are
    not pruned: a sparse layer's schedule is still to begin.

    Raises:
        KeyError, AttributeError: where the networks do not correspond.
    """
    layers = layers_of(model, LinearConv)
    for name, layer in layers.items():
        fit(layer, dense.get_submodule(name), prune=False)
    others = {key: value for key, value in dense.state_dict().items() if key.rpartition(".")[0] not in layers}
    model.load_state_dict(model.state_dict() | others)


def linearconv_like(layer: nn.Conv2d, conv: Callable[..., LinearConv], device: str | None = None) -> LinearConv:
    """Return a LinearConv of the geometry, device, dtype, memory format and `requires_grad` of an nn.Conv2d.

    Args:
        layer: the convolution.
        conv: makes the new layer, of the arguments of nn.Conv2d.
        device: another one to put it on.
    """
    factory = {"device": device or layer.weight.device, "dtype": layer.weight.dtype}
    new = conv(**{name: getattr(layer, name) for name in GEOMETRY}, bias=layer.bias is not None, **factory)
    if not layer.weight.is_contiguous() and layer.weight.is_contiguous(memory_format=torch.channels_last):
        new.to(memory_format=torch.channels_last)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_((layer.bias if name == "bias" else layer.weight).requires_grad)
    return new


@torch.no_grad()
def fit(
    layer: LinearConv, conv: nn.Conv2d, moments: Moments | None = None, prune: bool = True
) -> tuple[float, float | None]:
    """Fit the parameters of a LinearConv layer to those of a convolution of its geometry.

    Args:
        layer: any variant; changed in place.
        conv: the convolution.
        moments: of its outputs, where it has one group; then these are matched instead of the filters.
        prune: bring a sparse layer to its target at once.

    Returns:
        Relative errors, in the Frobenius norm, of the filters and of the outputs (None without moments).
    """
    weight = conv.weight.detach().double()
    output_error = None
    if layer.bias is not None:
        layer.bias.copy_(conv.bias)
    if layer.secondary_channels == 0:
        layer.conv_weights.copy_(conv.weight)
    else:
        root = root_of_layer(conv, moments)
        coefficients = _fit_coefficients(layer, root, prune)
        layer.conv_weights.copy_(fitting.primary_of(coefficients, weight))
        if moments is not None:
            output_error = fitting.error(coefficients, root) / _norm(root)
            if layer.bias is not None:
                mean = fitting.residual(coefficients, moments.mean[:, None])[:, 0]
                layer.bias.add_(mean.to(layer.bias.dtype))
    return torch.linalg.vector_norm(layer.weight.double() - weight).item() / _norm(weight), output_error


def root_of_layer(conv: nn.Conv2d, moments: Moments | None = None) -> torch.Tensor:
    """Return the root S (F, r) of what is fitted to a convolution: its outputs where there are moments, or its filters.

    Of a layer with a bias, the outputs' means are left to that.
    """
    if moments is not None:
        weighed = moments.covariance if conv.bias is not None else moments.second / moments.count
        if weighed.diagonal().sum() > 0:  # otherwise the layer's outputs were constant
            return fitting.root_of_moments(weighed)
    return fitting.root_of(conv.weight)


def _fit_coefficients(layer, root, prune):
    """Fill in the factors of a layer; returns their product, rounded as they are, (F - P, P) in float64."""
    primary = layer.primary_channels
    coefficients = fitting.full_rank(root, primary, layer.conv_weights.dtype)
    if isinstance(layer, LinearConvLowRank):
        column, row = fitting.low_rank(root, primary, layer.column_weights.shape[1], coefficients)
        layer.column_weights.copy_(column)
        layer.row_weights.copy_(row)
        return layer.column_weights.double() @ layer.row_weights.double()
    if isinstance(layer, LinearConvSparse) and prune:
        pruned = round(layer.sparsity * coefficients.numel())
        coefficients, mask = fitting.sparse(root, primary, pruned, coefficients)
        layer.keep_mask(mask)
    layer.linear_weights.copy_(coefficients)
    return layer.linear_weights.double()


def _norm(tensor):
    return max(torch.linalg.vector_norm(tensor).item(), torch.finfo(tensor.dtype).tiny)


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
