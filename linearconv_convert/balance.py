"""Balanced parameters, in which a converted network is trained further: the same layers with the same sizes.

    W_p = G D,    A = B G^-1,    hence W = [W_p ; A W_p] = [G ; B] D        G (P, P) fixed, B (F - P, P), D (P, K)

The coefficients `A` of a converted layer are large where its first P filters are nearly dependent. A small step of
`W_p` then becomes a large step of the secondary filters. With the singular value decomposition W = U diag(s) V^T, the
parameters start at [G ; B] = U diag(s)^1/2 and D = diag(s)^1/2 V^T, so that a step of any of them changes the filters
evenly. With the Cholesky factor L L^T = I + A^T A and the eigenvectors Q of L^T W_p W_p^T L = Q diag(s)^2 Q^T,

    G = L^-T Q diag(s)^1/2,    G^-1 = diag(s)^-1/2 Q^T L^T
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils import parametrize

from linearconv import LinearConv
from linearconv_convert.surgery import layers_of

LEAST_VALUE = 1e-4  # of the singular values, relative to the largest: bounds G^-1 where filters are dependent


class _Product(nn.Module):
    """A parameter as the product of a trained matrix with the fixed matrix G on its left, or G^-1 on its right."""

    basis: Tensor  # G
    inverse: Tensor

    def __init__(self, basis: Tensor, inverse: Tensor, side: str) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.register_buffer("inverse", inverse)
        self.side = side

    def forward(self, trained: Tensor) -> Tensor:
        return self._multiply(self.basis, self.inverse, trained)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return the trained matrix of a parameter's value; torch calls this method."""
        return self._multiply(self.inverse, self.basis, value)

    def _multiply(self, left: Tensor, right: Tensor, tensor: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):  # rounding would be large
            if self.side == "left":
                return (left @ tensor.flatten(1)).view_as(tensor)
            return tensor @ right


@torch.no_grad()
def balance(model: nn.Module) -> Any:
    """Give full-rank LinearConv layers balanced parameters, in place, for training; return the model.

    The parameters `conv_weights` and `linear_weights` become parametrizations of torch.nn.utils.parametrize, with equal
    sizes and, to rounding, equal outputs. :func:`unbalance` reverses this. Layers of other variants, and layers with
    parametrizations, stay unchanged.
    """
    for layer in layers_of(model, LinearConv).values():
        is_full_rank = type(layer).factors is LinearConv.factors and layer.secondary_channels > 0
        if is_full_rank and not parametrize.is_parametrized(layer):
            basis, inverse = (matrix.to(layer.conv_weights) for matrix in _basis_and_inverse(layer))
            parametrize.register_parametrization(layer, "conv_weights", _Product(basis, inverse, "left"))
            parametrize.register_parametrization(layer, "linear_weights", _Product(basis, inverse, "right"))
    return model


def _basis_and_inverse(layer):
    """G and G^-1 of a layer, in float64 or complex128."""
    precise = torch.promote_types(layer.conv_weights.dtype, torch.float64)
    primary, coefficients = layer.conv_weights.flatten(1).to(precise), layer.linear_weights.to(precise)
    identity = torch.eye(len(primary)).to(primary)
    root = torch.linalg.cholesky(identity + coefficients.mH @ coefficients)  # L
    projected = root.mH @ primary
    squares, rotation = torch.linalg.eigh(projected @ projected.mH)
    values = squares.clamp_min(0).sqrt()
    scale = values.clamp_min(LEAST_VALUE * values[-1].item() or 1.0).sqrt()
    basis = torch.linalg.solve_triangular(root.mH, rotation * scale, upper=True)
    return basis, (rotation / scale).mH @ root.mH


def unbalance(model: nn.Module) -> Any:
    """Give the layers of :func:`balance` the parameters of LinearConv again, in place; return the model."""
    for layer in layers_of(model, LinearConv).values():
        if any(isinstance(module, _Product) for module in layer.modules()):
            # Copies of the layer have the same class, from which torch removes the properties: change another class.
            kind = type(layer)
            layer.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            for name in ("conv_weights", "linear_weights"):
                parametrize.remove_parametrizations(layer, name)
    return model
