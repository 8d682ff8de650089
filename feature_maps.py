"""Feature maps combined instead of filters: [y ; A y + shift], with a backward pass that keeps no maps of its own.

The gradient of `A` needs the primary maps `y`. Left to autograd they would be kept beside the output, half an output
more than a plain convolution keeps. But they are the first P channels of the output, which the next layer (BatchNorm,
say) mostly keeps anyway: so the output is what is kept here. Where an in-place activation follows and overwrites it,
the first backward pass computes the primary maps again, and from then on the layer keeps them apart.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch.autograd import forward_ad
from torch.compiler import is_compiling

MOST_ROWS = 4096  # see lie_as_rows


def in_plain_eager_mode():
    """False while torch.compile, torch.export, torch.jit.trace or a torch.func transform runs the layer.

    Those see tensors that stand for others: nothing made from them may be kept, and no layer state may be changed.
    """
    return not (is_compiling() or _get_tracing_state() or _are_functorch_transforms_active())


class Keeper:
    """What a layer has learnt about its output: whether something overwrites it before the backward pass."""

    def __init__(self):
        self.output_is_overwritten = False


class Source(NamedTuple):
    """What the primary maps were convolved from, to compute them again."""

    input: torch.Tensor  # (N, C, H, W), padded already where the padding is not of zeros
    weight: torch.Tensor  # (P, C, kh, kw)
    bias: torch.Tensor | None  # (P,)


def combine(primary, factors, shift=None, source=None, keeper=None):
    """Primary feature maps and their combinations, [primary ; factors[0] @ factors[1] @ ... @ primary + shift].

    Args:
        primary (Tensor): (N, P, H, W) or (P, H, W), the output of a convolution, its bias included.
        factors (sequence of Tensor): the matrices whose product is A (F - P, P).
        shift (Tensor, optional): (F - P,), added to the combined maps.
        source (Source, optional): what `primary` was convolved from.
        keeper (Keeper, optional): the layer's. With both, in plain eager mode, the output is kept for the backward pass
            instead of `primary`. Without them, as under torch.compile, torch.func and tracing, and where `primary` is
            no convolution's output or forward-mode differentiation is on, autograd keeps what it needs.

    Returns:
        Tensor: (N, F, H, W) or (F, H, W), in the memory format of `primary`.
    """
    if keeper is None or not _can_be_computed_again(primary):
        return _compose(primary, factors, shift)
    return _Combine.apply(primary, shift, source, keeper, *factors)


def apply_factors(factors, right):
    """factors[0] @ factors[1] @ ... @ right, multiplied from the right."""
    for factor in reversed(factors):
        right = factor @ right
    return right


def lie_as_rows(maps):
    """True for few maps on a CPU that lie in memory as the rows of a matrix (N H W, channels).

    A matrix product over them takes less time than the 1x1 convolution that it equals, for many maps more.
    """
    return (
        maps.device.type == "cpu"
        and maps.dim() == 4
        and maps.shape[0] * maps.shape[2] * maps.shape[3] <= MOST_ROWS
        and maps.is_contiguous(memory_format=torch.channels_last)
    )


def multiply_rows(maps, weight, bias):
    """The 1x1 convolution of maps that lie as rows: (N, C, H, W) with weight (F, C) to (N, F, H, W)."""
    return F.linear(maps.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def combine_rows(primary, factors, shift):
    """:func:`combine` of maps that lie as rows, as matrix products."""
    combined = primary.permute(0, 2, 3, 1)
    for factor in reversed(factors[1:]):
        combined = F.linear(combined, factor)
    combined = F.linear(combined, factors[0], shift)
    return torch.cat((primary, combined.permute(0, 3, 1, 2)), dim=1)


def _compose(primary, factors, shift):
    if in_plain_eager_mode() and lie_as_rows(primary):
        return combine_rows(primary, factors, shift)
    combined = primary
    for factor in reversed(factors[1:]):
        combined = F.conv2d(combined, factor[:, :, None, None])
    combined = F.conv2d(combined, factors[0][:, :, None, None], shift)
    return torch.cat((primary, combined), dim=-3)


def _can_be_computed_again(primary):
    """True for what came straight out of a differentiable convolution of a batch."""
    node = primary.grad_fn
    plain = torch.is_grad_enabled() and forward_ad._current_level < 0
    return plain and primary.dim() == 4 and node is not None and node.name() == "ConvolutionBackward0"


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, primary, shift, source, keeper, *factors):
        output = _compose(primary, factors, shift)
        ctx.keeper, ctx.weight, ctx.bias = keeper, source.weight, source.bias
        # Kept by hand, being small: reading ctx.saved_tensors fails for all where one of them has been overwritten.
        ctx.factors, ctx.versions = factors, [factor._version for factor in factors]
        ctx.primary_channels = primary.shape[1]
        kept = primary if keeper.output_is_overwritten else output
        ctx.kept_version = kept._version
        ctx.save_for_backward(kept, source.input)  # the convolution keeps its input anyway
        return output

    @staticmethod
    def backward(ctx, grad):
        if [factor._version for factor in ctx.factors] != ctx.versions:
            raise RuntimeError("the coefficients of a LinearConv were modified in place before the backward pass")
        needs_primary, needs_shift, _, _, *needs_factors = ctx.needs_input_grad
        shift_grad = grad[:, ctx.primary_channels :].sum((0, 2, 3)) if needs_shift else None
        primary = _kept_primary(ctx) if any(needs_factors) else None
        differentiate = _by_rows if _is_channels_last_on_cpu(grad) else _by_convolutions
        primary_grad, factor_grads = differentiate(grad, primary, ctx.factors, ctx.primary_channels)
        factor_grads = [g if needed else None for g, needed in zip(factor_grads, needs_factors, strict=True)]
        return (primary_grad if needs_primary else None), shift_grad, None, None, *factor_grads


def _kept_primary(ctx):
    """The primary maps: the kept tensor's first P channels, or computed again where it has been overwritten."""
    conv = ctx.next_functions[0][0]
    try:
        kept, input = ctx.saved_tensors
        # Saved-tensor hooks switch autograd's own check off. They may hand back the very tensor, or a copy of it.
        if kept._version == ctx.kept_version:
            return kept[:, : ctx.primary_channels]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        input = conv._saved_input  # not yet freed: the convolution's turn comes after this node's
    ctx.keeper.output_is_overwritten = True
    weight, bias = (None if part is None else part.to(input.dtype) for part in (ctx.weight, ctx.bias))
    return F.conv2d(
        input, weight, bias, conv._saved_stride, conv._saved_padding, conv._saved_dilation, conv._saved_groups
    )


# ---- the backward pass in two ways, both differentiable again --------------------------------------------------------
#
# With u = factors[1] @ ... @ primary going in and v the gradient coming back, a factor's gradient is v u^T and what it
# hands on is factor^T v. `primary` is None where no factor wants a gradient.


def _is_channels_last_on_cpu(grad):
    return grad.device.type == "cpu" and grad.is_contiguous(memory_format=torch.channels_last)


def _by_rows(grad, primary, factors, primary_channels):
    """Matrix products on maps that lie in memory as (N H W, channels); faster than 1x1 convolutions on a CPU."""
    rows = _rows(grad)
    if primary is not None:
        inputs = [_rows(primary).to(grad.dtype)]
        for factor in reversed(factors[1:]):
            inputs.append(inputs[-1] @ factor.to(grad.dtype).t())
    back, factor_grads = rows[:, primary_channels:], []
    for position, factor in enumerate(factors):
        if primary is None:
            factor_grads.append(None)
        else:
            factor_grads.append((back.t() @ inputs.pop()).to(factor.dtype))
        factor = factor.to(grad.dtype)
        if position < len(factors) - 1:
            back = back @ factor
    primary_grad = torch.addmm(rows[:, :primary_channels], back, factor)
    batch, _, height, width = grad.shape
    return primary_grad.view(batch, height, width, primary_channels).permute(0, 3, 1, 2), factor_grads


def _rows(maps):
    """(N, C, H, W) as (N H W, C); a view of what is channels_last, or channels of it."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _by_convolutions(grad, primary, factors, primary_channels):
    """The same as 1x1 convolutions, for other memory formats and for GPUs."""
    if primary is not None:
        inputs = [primary.to(grad.dtype)]
        for factor in reversed(factors[1:]):
            inputs.append(F.conv2d(inputs[-1], factor.to(grad.dtype)[:, :, None, None]))
    back, factor_grads = grad[:, primary_channels:], []
    for factor in factors:
        kernel = factor.to(grad.dtype)[:, :, None, None]
        mask = (True, primary is not None, False)
        if primary is None:  # only its shape matters
            input = grad.new_empty(()).expand(len(grad), factor.shape[1], *grad.shape[2:])
        else:
            input = inputs.pop()
        back, kernel_grad, _ = torch.ops.aten.convolution_backward(
            back, input, kernel, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, mask
        )
        factor_grads.append(None if kernel_grad is None else kernel_grad[:, :, 0, 0].to(factor.dtype))
    return grad[:, :primary_channels] + back, factor_grads
