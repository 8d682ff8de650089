"""Weights of LinearConv layers: fitted to convolutions, or drawn for training from scratch.

A variant that is a subclass of LinearConv needs no additional code for conversion: L-BFGS fits its parameters through
`factors()`. Afterwards the primary filters are fitted to the coefficients.
"""

import copy
from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import torch
import torch.nn as nn

from linearconv import GEOMETRY, LinearConv
from linearconv_convert import fitting
from linearconv_convert.calibration import Moments
from linearconv_convert.surgery import layers_of
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse

STARTS = ("published", "balanced", "spectral")


def copy_weights(dense: nn.Module, model: nn.Module) -> None:
    """Copy the weights of a network to the same network with LinearConv layers in place of nn.Conv2d.

    Each layer is fitted to the convolution with the same name, but sparse layers are not pruned; all else is copied.
    """
    layers = layers_of(model, LinearConv)
    for name, layer in layers.items():
        fit(layer, dense.get_submodule(name), prune=False)
    others = {key: value for key, value in dense.state_dict().items() if key.rpartition(".")[0] not in layers}
    model.load_state_dict(model.state_dict() | others)


def linearconv_like(layer: nn.Conv2d, conv: Callable[..., Any], device: str | None = None) -> Any:
    """Return the layer of a factory `conv` with geometry, dtype, memory format and `requires_grad` of an nn.Conv2d."""
    factory = {"device": device or layer.weight.device, "dtype": layer.weight.dtype}
    new = conv(**{name: getattr(layer, name) for name in GEOMETRY}, bias=layer.bias is not None, **factory)
    if not layer.weight.is_contiguous() and layer.weight.is_contiguous(memory_format=torch.channels_last):
        new.to(memory_format=torch.channels_last)
    for name, parameter in new.named_parameters():
        old: Any = layer.bias if name == "bias" else layer.weight
        vars(parameter).update(vars(old))  # attributes that a user has set
        parameter.requires_grad_(old.requires_grad)
    return new


@torch.no_grad()
def fit(layer: LinearConv, conv: Any, moments: Moments | None = None, prune: bool = True) -> tuple[float, float | None]:
    """Fit the parameters of a LinearConv layer of any variant to a convolution of the same geometry.

    The outputs with these `moments` are fitted instead of the filters, if there are any. `prune=False` leaves sparse
    layers unpruned. The function returns the relative errors, in the Frobenius norm, of filters and of outputs.
    """
    weight = conv.weight.detach().double()
    output_error = None
    layer.conv_weights.copy_(conv.weight[: layer.primary_channels])
    if layer.bias is not None:
        layer.bias.copy_(conv.bias)
    if layer.secondary_channels:
        root, metric = root_of_layer(conv, moments), None
        if moments is not None and type(layer).factors is LinearConv.factors:  # the other fits have no metric
            metric = moments.metric
        best = fitting.full_rank(root, layer.primary_channels, metric)
        _fit_coefficients(layer, root, best, prune)
        coefficients = reduce(torch.matmul, [factor.double() for factor in layer.factors()])  # (F - P, P)
        layer.conv_weights.copy_(fitting.primary_of(coefficients, weight, metric))
        if moments is not None:
            output_error = _norm(fitting.residual(coefficients, root, metric)) / _norm(root)
            if layer.bias is not None:
                mean = fitting.residual(coefficients, moments.mean[:, None], metric)[:, 0]
                layer.bias.add_(mean.to(layer.bias.dtype))
    return torch.linalg.vector_norm(layer.weight.double() - weight).item() / _norm(weight), output_error


def root_of_layer(conv: nn.Conv2d, moments: Moments | None = None) -> torch.Tensor:
    """Return the root S (F, r) for a fit to a convolution's outputs if moments are given, else to its filters."""
    if moments is not None:
        second = moments.second / moments.count if conv.bias is None else moments.covariance  # a bias keeps the mean
        if second.diagonal().sum() > 0:  # otherwise the layer's outputs are constant
            return fitting.root_of_moments(second)
    return fitting.root_of(conv.weight)


def _fit_coefficients(layer, root, best, prune):
    """Set the parameters of `A` with the method for the `factors` of the layer's class, from the best full rank."""
    primary, factors = layer.primary_channels, type(layer).factors
    if factors is LinearConv.factors:
        layer.linear_weights.copy_(best)
    elif factors is LinearConvLowRank.factors:
        column, row = fitting.low_rank(root, primary, layer.column_weights.shape[1], best)
        layer.column_weights.copy_(column)
        layer.row_weights.copy_(row)
    elif factors is LinearConvSparse.factors:
        if prune:
            best, mask = fitting.sparse(root, primary, round(layer.sparsity * best.numel()), best)
            layer.keep_mask(mask)
        layer.linear_weights.copy_(best)
    else:
        precise = copy.deepcopy(layer).double().requires_grad_(True)
        fitted = _parameters_of_factors(precise)
        fitting.by_gradient(root, precise.factors, list(fitted.values()), best)
        for name, parameter in _parameters_of_factors(layer).items():
            parameter.copy_(fitted[name])


def _parameters_of_factors(layer):
    """The parameters of A, {name: parameter}."""
    return {name: each for name, each in layer.named_parameters() if name not in ("conv_weights", "bias")}


def _norm(tensor):
    return max(torch.linalg.vector_norm(tensor).item(), torch.finfo(tensor.dtype).tiny)


@torch.no_grad()
def initialise(model: nn.Module, start: str) -> nn.Module:
    """Draw new parameters for all LinearConv layers of `model` in place, and return the model.

    Args:
        model: a network, or a layer.
        start: `"published"` is the default of the layers: Xavier uniform primary filters, coefficients U(-0.1, 0.1).
            `"balanced"` has the same primary filters and coefficients of Var(A) = 1 / P, so that secondary filters have
            the norm of primary filters; with `"published"` they have 0.06 to 0.9 of it. `"spectral"` is the best
            LinearConv for filters with nn.Conv2d's initial distribution (Khodak et al., ICLR 2021, arXiv 2105.01029).

    Raises:
        ValueError: for any other start.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    for layer in layers_of(model, LinearConv).values():
        layer.reset_parameters()
        if start == "balanced":  # each of n factors with inner dimensions d_1, ..., d_n = P has Var = prod(d)^(-1/n)
            inner = [factor.shape[1] for factor in layer.factors()]
            bound = (3 * max(1, prod(inner)) ** (-1 / len(inner))) ** 0.5
            for parameter in _parameters_of_factors(layer).values():
                nn.init.uniform_(parameter, -bound, bound)
        elif start == "spectral":
            conv = layer.fuse()
            conv.reset_parameters()
            fit(layer, conv, prune=False)
    return model
