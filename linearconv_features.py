"""Combining feature maps instead of filters: how it is done, when it pays, and what is kept for inference.

    features:  y = [W_p * x ; A (W_p * x) + shift]          P of F channels convolved, the others combined

`combine` does it. The gradient of `A` needs the primary maps y_p. Left to autograd they would be kept beside the
output, half an output more than a plain convolution keeps. But they are the first P channels of the output, which the
next layer (BatchNorm, say) mostly keeps anyway: so the output is what is kept, see `_Combine`.

`features_pay` is the measured rule behind `compute="auto"`; `Kept` keeps what a layer makes of its parameters between
passes without gradients.
"""

from collections import namedtuple
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _is_any_autocast_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook

MOST_ROWS = 4096  # maps that are multiplied as rows, see lie_as_rows
MOST_JOINED = 64  # primary filters: up to here multiplying with I costs less than joining maps


def in_plain_eager_mode() -> bool:
    """Return False while torch.compile, torch.export, torch.jit.trace or a torch.func transform runs the layer.

    Those see tensors that stand for others: nothing made from them may be kept, and no layer state may be changed.
    """
    return not (is_compiling() or _get_tracing_state() or _are_functorch_transforms_active())


class Overwriting:
    """What a layer has learnt of what comes after it: whether that overwrites its output before the backward pass.

    An object, because the backward pass that learns it runs long after the layer's forward pass has returned.
    """

    seen = False


class Source(NamedTuple):
    """What the primary maps were convolved from, to compute them again."""

    input: Tensor  # (N, C, H, W), padded already where the padding is not of zeros
    weight: Tensor  # (P, C, kh, kw)
    bias: Tensor | None  # (P,)


def combine(
    primary: Tensor,
    factors: Sequence[Tensor],
    shift: Tensor | None = None,
    source: Source | None = None,
    overwriting: Overwriting | None = None,
) -> Tensor:
    """Return primary feature maps and their combinations, [primary ; factors[0] @ factors[1] @ ... @ primary + shift].

    Args:
        primary: (N, P, H, W) or (P, H, W), the output of a convolution, its bias included.
        factors: the matrices whose product is A (F - P, P).
        shift: (F - P,), added to the combined maps.
        source: what `primary` was convolved from.
        overwriting: the layer's. With both, the output is kept for the backward pass instead of `primary`. Without
            them, and where `primary` is no convolution's output or forward-mode differentiation is on, autograd keeps
            what it needs.

    Returns:
        (N, F, H, W) or (F, H, W), in the memory format of `primary`.
    """
    if overwriting is None or not _can_be_computed_again(primary):
        return _compose(primary, factors, shift)
    return _Combine.apply(primary, shift, source, overwriting, *factors)


def apply_factors(factors: Sequence[Tensor], right: Tensor) -> Tensor:
    """Return factors[0] @ factors[1] @ ... @ right, multiplied from the right."""
    for factor in reversed(factors):
        right = factor @ right
    return right


def lie_as_rows(maps: Tensor) -> bool:
    """Return True for few maps on a CPU that lie in memory as the rows of a matrix (N H W, channels).

    A matrix product over them takes less time than the 1x1 convolution that it equals, for many maps more.
    """
    return (
        maps.device.type == "cpu"
        and maps.dim() == 4
        and maps.shape[0] * maps.shape[2] * maps.shape[3] <= MOST_ROWS
        and maps.is_contiguous(memory_format=torch.channels_last)
    )


def multiply_rows(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 1x1 convolution of maps that lie as rows: (N, C, H, W) with weight (F, C) to (N, F, H, W)."""
    return F.linear(maps.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def combine_rows(primary: Tensor, factors: Sequence[Tensor], shift: Tensor | None) -> Tensor:
    """Return :func:`combine` of maps that lie as rows, as matrix products."""
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
    """`combine`, keeping the output for the backward pass instead of the primary maps that are a part of it.

    The protocol: keep the output, whose first P channels are the primary maps. If an in-place operation has overwritten
    it when the backward pass comes, compute the primary maps again, and learn: `overwriting.seen` makes the following
    passes of this layer keep the primary maps apart.

    Computing again needs no place in what is kept, because the node that follows in the backward pass is the
    convolution that made the primary maps (`_can_be_computed_again` has seen to that): it still holds its input and
    its geometry.
    """

    @staticmethod
    def forward(ctx, primary, shift, source, overwriting, *factors):
        output = _compose(primary, factors, shift)
        ctx.overwriting, ctx.weight, ctx.bias = overwriting, source.weight, source.bias
        # Kept by hand, being small: reading ctx.saved_tensors fails for all where one of them has been overwritten.
        ctx.factors, ctx.versions = factors, [factor._version for factor in factors]
        ctx.primary_channels = primary.shape[1]
        kept = primary if overwriting.seen else output
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
        on_cpu_as_rows = grad.device.type == "cpu" and grad.is_contiguous(memory_format=torch.channels_last)
        differentiate = _by_rows if on_cpu_as_rows else _by_convolutions
        primary_grad, factor_grads = differentiate(grad, primary, ctx.factors, ctx.primary_channels)
        factor_grads = [g if needed else None for g, needed in zip(factor_grads, needs_factors, strict=True)]
        return (primary_grad if needs_primary else None), shift_grad, None, None, *factor_grads


def _kept_primary(ctx):
    """The primary maps: the kept tensor's first P channels, or computed again where it has been overwritten."""
    convolution = ctx.next_functions[0][0]  # the backward node of what made the primary maps
    try:
        kept, input = ctx.saved_tensors
        # Saved-tensor hooks switch autograd's own check off. They may hand back the very tensor, or a copy of it.
        if kept._version == ctx.kept_version:
            return kept[:, : ctx.primary_channels]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        input = convolution._saved_input  # not yet freed: the convolution's turn comes after this node's
    ctx.overwriting.seen = True
    weight, bias = (None if part is None else part.to(input.dtype) for part in (ctx.weight, ctx.bias))
    names = ("stride", "padding", "dilation", "groups")
    return F.conv2d(input, weight, bias, *(getattr(convolution, f"_saved_{name}") for name in names))


# ---- the backward pass in two ways, both differentiable again --------------------------------------------------------
#
# With u = factors[1] @ ... @ primary going in and v the gradient coming back, a factor's gradient is v u^T and what it
# hands on is factor^T v. `primary` is None where no factor wants a gradient.


def _by_rows(grad, primary, factors, primary_channels):
    """Matrix products on maps that lie in memory as (N H W, channels); faster than 1x1 convolutions on a CPU."""
    rows = _rows(grad)
    if primary is not None:
        inputs = [_rows(primary).to(grad.dtype)]
        for factor in reversed(factors[1:]):
            inputs.append(inputs[-1] @ factor.to(grad.dtype).t())
    back, factor_grads = rows[:, primary_channels:], []
    for position, factor in enumerate(factors):
        factor_grads.append(None if primary is None else (back.t() @ inputs.pop()).to(factor.dtype))
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
        shape = len(grad), factor.shape[1], *grad.shape[2:]  # all that matters of inputs without a gradient to make
        input = grad.new_empty(()).expand(shape) if primary is None else inputs.pop()
        back, kernel_grad, _ = torch.ops.aten.convolution_backward(
            back, input, kernel, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, mask
        )
        factor_grads.append(None if kernel_grad is None else kernel_grad[:, :, 0, 0].to(factor.dtype))
    return grad[:, :primary_channels] + back, factor_grads


# ---- when it pays ---------------------------------------------------------------------------------------------------
#
# In units of one multiply-add of a convolution:
#
#     made filters:           positions * F K                      + in training  T * |A| K
#     combined feature maps:  positions * (P K + c |A| + e F)      + o * calls
#
# `positions` is N H' W', |A| the number of elements of the matrices that combine, K = C/groups kh kw. Their
# multiply-add costs c of a convolution's; `e` is the traffic of an output element that is written apart and joined; `o`
# what it takes to start a further operation; T = 3 the products (forward, two backward) that making the filters takes.
#
# The constants were fitted to two CPU cores (results/layers_cpu_*.json), in bfloat16 with matrix instructions, which
# multiply several times as fast and move data no faster. They stand for GPUs too as long as nobody has measured these.


Costs = namedtuple("Costs", ("coefficient", "element", "call"))  # the constants c, e and o
MEASURED = {  # benchmarks.layers --fit
    "float32": Costs(coefficient=1.0, element=80.0, call=2e5),
    "bfloat16": Costs(coefficient=1.0, element=480.0, call=1e6),
}


def features_pay(
    *,
    spared: int,
    coefficients: int,
    out_channels: int,
    operations: int,
    making: int = 0,
    positions: int | None = None,
    precision: str = "float32",
) -> bool:
    """Return True where combining feature maps is expected to be faster than making filters.

    Args:
        spared: multiply-adds a position, (F - P) K, that convolving with the primary filters alone spares.
        coefficients: elements of the matrices that combine, |A|.
        out_channels: F.
        operations: further ones that combining starts.
        making: multiply-adds of making all filters; 0 where they have been made.
        positions: output positions of the whole batch, N H' W'; very many where left out.
        precision: `"float32"`, or `"bfloat16"` for all 16-bit types.
    """
    costs = MEASURED[precision]
    saved = spared - costs.coefficient * coefficients - costs.element * out_channels
    if positions is None:
        return saved > 0
    return positions * saved + 3 * making > costs.call * operations


# ---- what is kept for inference -------------------------------------------------------------------------------------


class Kept:
    """What a layer makes of its parameters, kept between passes without gradients until one of these changes.

    A change is seen by the identity, version counter and address of every parameter and buffer, and by the steps that
    optimizers take, as fused ones count no versions.
    """

    optimizer_steps = 0  # taken in this process

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Keep nothing."""
        self.seen, self.memory, self.made = None, (), {}

    def get(self, layer: nn.Module, name: str) -> Sequence[Tensor | None]:
        """Return what a method of the layer makes, under autocast in its lower precision."""
        lower = _lower_precision(layer) if _is_any_autocast_enabled() else None
        if self.seen is None or self.seen != self._look_at(layer):
            self.clear()
        elif made := self.made.get((name, lower)):
            return made
        if not self._shows_its_changes(layer):
            return getattr(layer, name)()
        # Normal tensors made in full precision, whatever inference or autocast mode the first caller is in.
        disabled = torch.autocast(layer.conv_weights.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), disabled:
            made = [_round(tensor, lower) for tensor in getattr(layer, name)()]
        if all(type(tensor) in PLAIN for tensor in made):  # no fake ones
            self.seen = self._look_at(layer)
            self.memory = [tensor.detach() for tensor in _tensors(layer)]  # no other tensor can get its address
            self.made[name, lower] = made
        return made

    def _look_at(self, layer):
        try:
            return [(id(t), t._version, t.data_ptr()) for t in _tensors(layer)], self.optimizer_steps
        except RuntimeError:  # of tensors without a version or an address
            return None

    @staticmethod
    def _shows_its_changes(layer):
        """False for inference tensors, which count no versions; subclasses, which may hide their storage; meta tensors;
        parametrized layers; the replicas of nn.DataParallel, which share this object and have no parameters."""
        if layer._modules or not layer._parameters:
            return False
        return not any(type(t) not in PLAIN or t.is_inference() or t.is_meta for t in _tensors(layer))


PLAIN = (torch.Tensor, nn.Parameter, type(None))


def _count_step(*_):
    if not is_compiling():
        Kept.optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


def _tensors(layer):
    return [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]


def _lower_precision(layer):
    device = layer.conv_weights.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _round(tensor, lower):
    return tensor.to(lower) if lower and tensor is not None and tensor.dtype == torch.float32 else tensor
