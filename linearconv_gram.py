"""The Gram matrix X X^H, with one matrix product in the backward pass where autograd takes two.

The correlation regulariser spends most of its time in this product.
"""

from typing import Any

import torch
from torch import Tensor


def gram(rows: Tensor) -> Tensor:
    """Return X X^H (P, P) of X = `rows` (P, K), real or complex, differentiable any number of times in reverse mode."""
    return _Gram.apply(rows)


class _Gram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows @ rows.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return (grad + grad.mH) @ rows
