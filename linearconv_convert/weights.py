"""Weights of LinearConv layers: fitted to convolutions, or drawn for training from scratch.

A variant that is a subclass of LinearConv needs no additional code for conversion: L-BFGS fits its parameters through
`factors()`. The optional method `fit_coefficients` sets the parameters from the best full-rank coefficients instead:

    class BlockDiagonal(LinearConv):
        def _create_factors(self, **factory):
            size = self.secondary_channels // 4, self.primary_channels // 4
            self.blocks = nn.Parameter(torch.empty(4, *size, **factory))

        def factors(self):
            return (torch.block_diag(*self.blocks),)

        def fit_coefficients(self, coefficients):  # optional; A (F - P, P) in float64, without gradients
            rows, columns = self.blocks.shape[1:]
            for index, block in enumerate(self.blocks):
                block.copy_(coefficients[index * rows :, index * columns :][:rows, :columns])

Afterwards the primary filters are fitted to the coefficients of the layer.
"""

import copy
from collections.abc import Callable
from functools import reduce

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

    Each layer is fitted to the convolution with the same name; all other parameters and buffers are copied. Sparse
    layers are not pruned, as their pruning schedule has not begun.

    Raises:
        KeyError, AttributeError: if the networks do not correspond.
    """
    layers = layers_of(model, LinearConv)
    for name, layer in layers.items():
        fit(layer, dense.get_submodule(name), prune=False)
    others = {key: value for key, value in dense.state_dict().items() if key.rpartition(".")[0] not in layers}
    model.load_state_dict(model.state_dict() | others)


def linearconv_like(layer: nn.Conv2d, conv: Callable[..., LinearConv], device: str | None = None) -> LinearConv:
    """Return a LinearConv with the geometry, device, dtype, memory format and `requires_grad` of an nn.Conv2d.

    Args:
        layer: the convolution.
        conv: a function that takes the arguments of nn.Conv2d and returns the new layer.
        device: device of the new layer. Default: the convolution's device
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
    """Fit the parameters of a LinearConv layer to a convolution of the same geometry.

    Args:
        layer: a layer of any variant; it is changed in place.
        conv: the convolution.
        moments: moments of the convolution's outputs, which are then fitted instead of the filters; only for one group.
        prune: prune a sparse layer to its target sparsity at once.

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
        _fit_coefficients(layer, root, prune)
        coefficients = reduce(torch.matmul, [factor.double() for factor in layer.factors()])  # (F - P, P)
        layer.conv_weights.copy_(fitting.primary_of(coefficients, weight))
        if moments is not None:
            output_error = fitting.error(coefficients, root) / _norm(root)
            if layer.bias is not None:
                mean = fitting.residual(coefficients, moments.mean[:, None])[:, 0]
                layer.bias.add_(mean.to(layer.bias.dtype))
    return torch.linalg.vector_norm(layer.weight.double() - weight).item() / _norm(weight), output_error


def root_of_layer(conv: nn.Conv2d, moments: Moments | None = None) -> torch.Tensor:
    """Return the root S (F, r) for a fit: of the convolution's outputs if moments are given, else of its filters.

    If the convolution has a bias, the root excludes the means of the outputs, which the bias preserves.
    """
    if moments is not None:
        second = moments.covariance if conv.bias is not None else moments.second / moments.count
        if second.diagonal().sum() > 0:  # otherwise the layer's outputs are constant
            return fitting.root_of_moments(second)
    return fitting.root_of(conv.weight)


def _fit_coefficients(layer, root, prune):
    """Set the parameters of `A` with the method for the `factors` of the layer's class."""
    primary, factors = layer.primary_channels, type(layer).factors
    best = fitting.full_rank(root, primary, layer.conv_weights.dtype)
    if hasattr(layer, "fit_coefficients"):
        layer.fit_coefficients(best)
    elif factors is LinearConv.factors:
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


# ---- weights for training from scratch -------------------------------------------------------------------------------


@torch.no_grad()
def initialise(model: nn.Module, start: str) -> nn.Module:
    """Draw new parameters for all LinearConv layers of `model` in place, and return the model.

    Args:
        model: a network, or a layer.
        start: `"published"` is the default of the layers: Xavier uniform primary filters, coefficients U(-0.1, 0.1).
            `"balanced"` has the same primary filters and coefficients of Var(A) = 1 / P, so that secondary filters have
            the same norm as primary filters; with `"published"` they have 0.06 to 0.9 of this norm. `"spectral"` is the
            best LinearConv for filters with nn.Conv2d's initial distribution (Khodak et al., "Initialization and
            Regularization of Factorized Neural Layers", ICLR 2021, arXiv 2105.01029).

    Raises:
        ValueError: for any other start.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    for layer in layers_of(model, LinearConv).values():
        layer.reset_parameters()
        if start == "balanced":
            _balance(layer)
        elif start == "spectral":
            bias, device, dtype = layer.bias is not None, layer.conv_weights.device, layer.conv_weights.dtype
            geometry = {name: getattr(layer, name) for name in GEOMETRY}
            fit(layer, nn.Conv2d(**geometry, bias=bias, device=device, dtype=dtype), prune=False)
    return model


def _balance(layer):
    """Draw the parameters of A from U(-b, b), such that secondary and primary filters have the same mean square.

    For n factors with inner dimensions d_1, ..., d_n, where d_n = P, each needs a variance of (d_1 ... d_n)^(-1/n).
    """
    shapes = [factor.shape for factor in layer.factors()]
    inner = 1
    for _, columns in shapes:
        inner *= columns
    if inner == 0:
        return
    bound = (3 * inner ** (-1 / len(shapes))) ** 0.5
    for parameter in _parameters_of_factors(layer).values():
        nn.init.uniform_(parameter, -bound, bound)
