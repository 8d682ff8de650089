"""Combining feature maps instead of filters: how it is done, when it pays, and what is kept for inference.

    features:  y = [W_p * x ; A (W_p * x) + shift]          P of F channels convolved, the others combined

`combine` does it. The gradient of `A` needs the primary maps y_p. Left to autograd they would be kept beside the
output, half an output more than a plain convolution keeps. But they are the first P channels of the output, which the
next layer (BatchNorm, say) mostly keeps anyway: so the output is what is kept, see `_Combine`.

`features_pay` is the measured rule behind `compute="auto"`; `Kept` keeps what a layer makes of its parameters between
passes without gradients, and convolves with it.
"""

from collections import namedtuple
from collections.abc import Sequence
from math import inf

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_dispatch_mode,
    _get_mkldnn_enabled,
    _get_tracing_state,
    _has_mkldnn,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _TorchDispatchModeKey,
)
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._mode_utils import no_dispatch

MOST_ROWS, MOST_SLOW_ROWS = 4096, 32  # maps that are multiplied as rows, see lie_as_rows; where products are slow
MOST_PACKED, MOST_SHAPES = 2048, 64  # maps that packed filters convolve (with more it gains little); shapes remembered
MAKE_FX = _TorchDispatchModeKey.PROXY

CPU = torch.cpu.get_capabilities()
HAS_AMX = CPU.get("amx_bf16", False)
# MKL, which multiplies matrices of float32, does without AVX512 on AMD's processors; oneDNN, which convolves, uses it.
MKL_IS_SLOW = CPU.get("avx512_f", False) and CPU["cpu_name"].startswith("AMD") and torch.backends.mkl.is_available()
PACKED = {torch.float32: CPU.get("avx2"), torch.bfloat16: CPU.get("avx512_bw")}  # what oneDNN convolves fast


def in_plain_eager_mode() -> bool:
    """Return False while torch.compile, export, make_fx, torch.jit.trace or a torch.func transform runs the layer.

    Those see tensors that stand for others: nothing made from them may be kept, and no layer state may be changed.
    """
    return not (
        is_compiling() or _get_tracing_state() or _are_functorch_transforms_active() or _get_dispatch_mode(MAKE_FX)
    )


def combine(
    primary: Tensor,
    factors: Sequence[Tensor],
    shift: Tensor | None = None,
    source: tuple[Tensor, Tensor, Tensor | None] | None = None,
    kept: "Kept | None" = None,
) -> Tensor:
    """Return primary feature maps and their combinations, [primary ; factors[0] @ factors[1] @ ... @ primary + shift].

    Args:
        primary: (N, P, H, W), the output of a convolution, its bias included.
        factors: the matrices whose product is A (F - P, P).
        shift: (F - P,), added to the combined maps.
        source: what `primary` was convolved from: input, padded already where the padding is not of zeros; weight and
            bias. With it, the output is kept for the backward pass instead of `primary`. Without it, and where
            `primary` is no convolution's output on a CPU or forward-mode differentiation is on, autograd keeps what it
            needs.
        kept: the layer's, with `source`: learns whether the output is overwritten.

    Returns:
        (N, F, H, W), in the memory format of `primary`.
    """
    if source is None or not _can_be_computed_again(primary):
        return _compose(primary, factors, shift)
    return _Combine.apply(primary, shift, source, kept, *factors)


def apply_factors(factors: Sequence[Tensor], right: Tensor) -> Tensor:
    """Return factors[0] @ factors[1] @ ... @ right, multiplied from the right."""
    for factor in reversed(factors):
        right = factor @ right
    return right


def lie_as_rows(maps: Tensor, most: int | None = None) -> bool:
    """Return True for few maps on a CPU that lie in memory as the rows of a matrix (N H W, channels).

    A matrix product over them takes less time than the 1x1 convolution that it equals, for many maps more.
    """
    batch, channels, height, width = maps.shape
    most = most or (MOST_SLOW_ROWS if MKL_IS_SLOW and maps.dtype == torch.float32 else MOST_ROWS)
    strides = height * width * channels, 1, width * channels, channels
    return 0 < batch * height * width <= most and maps.stride() == strides and maps.is_cpu


def multiply_rows(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 1x1 convolution of maps that lie as rows: (N, C, H, W) with weight (F, C) to (N, F, H, W)."""
    return F.linear(maps.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _multiply_maps(maps, weight, bias=None):
    return F.conv2d(maps, weight[:, :, None, None], bias)


def _compose(primary, factors, shift):
    multiply = multiply_rows if in_plain_eager_mode() and lie_as_rows(primary) else _multiply_maps
    combined = primary
    for factor in reversed(factors[1:]):
        combined = multiply(combined, factor)
    return torch.cat((primary, multiply(combined, factors[0], shift)), dim=1)


def _can_be_computed_again(primary):
    """True for what came straight out of a differentiable convolution on a CPU; complex ones are made of several."""
    node = primary.grad_fn
    plain = primary.is_cpu and torch.is_grad_enabled() and forward_ad._current_level < 0
    return plain and node is not None and node.name() == "ConvolutionBackward0"


class _Combine(torch.autograd.Function):
    """`combine`, keeping the output for the backward pass instead of the primary maps that are a part of it.

    The protocol: keep the output, whose first P channels are the primary maps. If an in-place operation has overwritten
    it when the backward pass comes, compute the primary maps again, and learn: `kept.overwritten` makes the following
    passes of this layer keep the primary maps apart.

    Computing again needs no place in what is kept, because the node that follows in the backward pass is the
    convolution that made the primary maps (`_can_be_computed_again` has seen to that): it still holds its input and
    its geometry.
    """

    @staticmethod
    def forward(ctx, primary, shift, source, layers_kept, *factors):
        output = _compose(primary, factors, shift)
        input, ctx.weight, ctx.bias = source
        ctx.layers_kept = layers_kept
        # Kept by hand, being small: reading ctx.saved_tensors fails for all where one of them has been overwritten.
        ctx.factors, ctx.versions = factors, [factor._version for factor in factors]
        ctx.primary_channels = primary.shape[1]
        kept = primary if layers_kept.overwritten else output
        ctx.kept_version = kept._version
        ctx.save_for_backward(kept, input)  # the convolution keeps its input anyway
        return output

    @staticmethod
    def backward(ctx, grad):
        if [factor._version for factor in ctx.factors] != ctx.versions:
            raise RuntimeError("the coefficients of a LinearConv were modified in place before the backward pass")
        _, needs_shift, _, _, *needs_factors = ctx.needs_input_grad
        shift_grad = grad[:, ctx.primary_channels :].sum((0, 2, 3)) if needs_shift else None
        primary = _kept_primary(ctx) if any(needs_factors) else None
        primary_grad, factor_grads = _differentiate(grad, primary, ctx.factors, ctx.primary_channels)
        return primary_grad, shift_grad, None, None, *factor_grads


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
    ctx.layers_kept.overwritten = True
    weight, bias = (None if part is None else part.to(input.dtype) for part in (ctx.weight, ctx.bias))
    names = ("stride", "padding", "dilation", "groups")
    return F.conv2d(input, weight, bias, *(getattr(convolution, f"_saved_{name}") for name in names))


def _differentiate(grad, primary, factors, primary_channels):
    """Gradients of the primary maps and of the factors; differentiable again.

    With u = factors[1] @ ... @ primary going in and v the gradient coming back, a factor's gradient is v u^T and what
    it hands on is factor^T v. `primary` is None where no factor wants a gradient.
    """
    shape, multiply, step = grad.shape, _multiply_maps, _step_by_convolution
    batched = is_legacy_batchedtensor(grad) or not in_plain_eager_mode()  # and does not say how it lies in memory
    slow = MKL_IS_SLOW and grad.dtype == torch.float32
    as_rows = not (batched or slow) and grad.is_contiguous(memory_format=torch.channels_last)
    if as_rows:  # (N H W, channels): matrix products are faster than 1x1 convolutions on most CPUs
        grad, primary, multiply, step = _rows(grad), _rows(primary), F.linear, _step_by_product
    inputs = [None if primary is None else primary.to(grad.dtype)]
    lower = [factor.to(grad.dtype) for factor in factors]
    for factor in reversed(lower[1:]):
        inputs.append(None if primary is None else multiply(inputs[-1], factor))
    back, factor_grads = grad[:, primary_channels:], []
    added = [None] * (len(lower) - 1) + [grad[:, :primary_channels]]  # to what the last factor hands on
    for factor, own in zip(lower, added, strict=True):
        back, factor_grad = step(back, inputs.pop(), factor, own)
        factor_grads.append(factor_grad)
    if as_rows:
        back = back.view(shape[0], *shape[2:], primary_channels).permute(0, 3, 1, 2)
    return back, factor_grads


def _rows(maps):
    """(N, C, H, W) as (N H W, C); a view of what is channels_last, or channels of it."""
    return None if maps is None else maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _step_by_product(back, input, factor, own):
    handed_on = back @ factor if own is None else torch.addmm(own, back, factor)
    return handed_on, None if input is None else back.t() @ input


def _step_by_convolution(back, input, factor, own):
    mask = True, input is not None, False
    if input is None:  # its shape is all that matters
        input = back.new_empty(()).expand(len(back), factor.shape[1], *back.shape[2:])
    back, factor_grad, _ = torch.ops.aten.convolution_backward(
        back, input, factor[:, :, None, None], None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, mask
    )
    back = back if own is None else own + back
    return back, None if factor_grad is None else factor_grad[:, :, 0, 0]


# ---- when it pays ---------------------------------------------------------------------------------------------------
#
# In units of one multiply-add of a convolution:
#
#     made filters:           positions * F K                      + in training  T * |A| K
#     combined feature maps:  positions * (P K + c |A| + e F)      + in training  T * M  + o * calls
#
# `positions` is N H' W', |A| the number of elements of the matrices that combine, K = C/groups kh kw. Their
# multiply-add costs c of a convolution's; `e` is the traffic of an output element that is written apart and joined; `o`
# what it takes to start a further operation; T = 3 the products (forward, two backward) that making the filters takes,
# or A, M multiply-adds where its factors are multiplied first.
#
# The constants were fitted to what benchmarks.layers measured (results/layers_*.json): two CPU cores, in bfloat16 with
# AVX512 and with AMX, which multiplies several times as fast and moves data no faster; and an H100, whose convolutions
# gain less from fewer filters than joining maps costs.

Costs = namedtuple("Costs", ("coefficient", "element", "call"))  # the constants c, e and o
NEVER = Costs(coefficient=0.0, element=inf, call=inf)
MEASURED = {  # by device, precision and whether there are gradients: benchmarks.layers --fit
    ("cpu", "float32", True): Costs(coefficient=1.0, element=80.0, call=2e5),
    ("cpu", "float32", False): Costs(coefficient=1.0, element=80.0, call=1e6),
    ("cpu", "bfloat16", True): Costs(coefficient=1.5, element=60.0, call=3e6),
    ("cpu", "bfloat16", False): Costs(coefficient=1.0, element=60.0, call=6e6),
    ("cpu with AMX", "bfloat16", True): Costs(coefficient=1.5, element=240.0, call=6e6),
    ("cpu with AMX", "bfloat16", False): Costs(coefficient=1.0, element=480.0, call=1e6),
    **{("cuda", precision, training): NEVER for precision in ("float32", "bfloat16") for training in (True, False)},
}


def measured_as(device: str, precision: str, training: bool) -> tuple[str, str, bool]:
    """Return the key in `MEASURED` of what :func:`features_pay` is asked for on this machine."""
    return "cpu with AMX" if HAS_AMX and (device, precision) == ("cpu", "bfloat16") else device, precision, training


def features_pay(
    *,
    spared: int,
    coefficients: int,
    out_channels: int,
    operations: int,
    making: int = 0,
    positions: int | None = None,
    training: bool = True,
    precision: str = "float32",
    device: str = "cpu",
) -> bool:
    """Return True where combining feature maps is expected to be faster than making filters.

    Args:
        spared: multiply-adds a position, (F - P) K, that convolving with the primary filters alone spares.
        coefficients: elements of the matrices that combine, |A|.
        out_channels: F.
        operations: further ones that combining starts.
        making: multiply-adds of making all filters, less those of making `A` where combining takes it whole; 0 where
            both have been made.
        positions, training, precision, device: as in LinearConv.mode_at.
    """
    costs = MEASURED[measured_as(device, precision, training)]
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
    overwritten = False  # whether what follows the layer overwrites its output, which backward passes learn

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Keep nothing."""
        self.seen, self.memory, self.made = None, (), {}
        self.packed = None, {}, {}  # filters; packed, or False, by the shapes seen; and packed by layout

    def get(self, layer: nn.Module, name: str) -> Sequence[Tensor | None]:
        """Return what a method of the layer makes, under autocast in its lower precision."""
        lower = lower_precision(layer) if _is_any_autocast_enabled() else None
        if not self.seen or self.seen != self._look_at(layer):
            self.clear()
        elif made := self.made.get((name, lower)):
            return made
        if not self._shows_its_changes(layer):
            return getattr(layer, name)()
        # Normal tensors made in full precision, whatever inference or autocast mode the first caller is in; real ones,
        # and out of sight of FlopCounterMode, whatever dispatch mode.
        disabled = torch.autocast(layer.conv_weights.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), disabled, no_dispatch():
            made = [tensor if tensor is None else rounded(tensor.detach(), lower) for tensor in getattr(layer, name)()]
            self.memory = [tensor.detach() for tensor in _tensors(layer)]  # no other tensor can get its address
        self.seen, self.made[name, lower] = self._look_at(layer), made
        return made

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
        """Return F.conv2d of kept filters, with padding, stride, dilation and groups; laid out for oneDNN once."""
        packed = self._pack(maps, weight, geometry) if _takes_packed(maps, weight) else None
        if packed is None:
            padding, stride, *others = geometry
            return F.conv2d(maps, weight, bias, stride, padding, *others)
        convolution = torch.ops.mkldnn._convolution_pointwise.default
        return convolution(maps.to(weight.dtype), packed, bias, *geometry, "none", (), "")  # as autocast casts

    def _pack(self, maps, weight, geometry):
        """The filters, laid out for a shape and a number of threads; None at its first pass. Most shapes have the same
        layout; in another one the convolution can take 50 times as long."""
        asked = maps.shape, maps.dtype, torch.get_num_threads(), geometry
        filters, shapes, layouts = self.packed  # at once: threads may share the layer
        if filters is not weight or len(shapes) >= MOST_SHAPES and asked not in shapes:
            self.packed = _, shapes, layouts = weight, {}, {}
        packed = shapes.get(asked)
        if packed is None:
            shapes[asked] = False
        elif packed is False:
            packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *geometry, maps.shape)
            fields = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
            fields = fields[:108] + fields[112:]  # without what lies between two of them, and is never set
            packed = shapes[asked] = layouts.setdefault(fields, packed)
        return packed

    def _look_at(self, layer):
        seen = [self.optimizer_steps]
        try:
            for t in _tensors(layer):
                seen += id(t), t._version, t.data_ptr()
        except RuntimeError:  # of tensors without a version or an address
            return None
        return seen

    @staticmethod
    def _shows_its_changes(layer):
        """False for inference tensors, which count no versions; subclasses, which may hide their storage; meta tensors;
        parametrized layers; the replicas of nn.DataParallel, which share this object and have no parameters."""
        if layer._modules or not layer._parameters:
            return False
        return all(type(t) in (Tensor, nn.Parameter) and not (t.is_inference() or t.is_meta) for t in _tensors(layer))


def _takes_packed(maps, weight):
    """True for few maps that oneDNN convolves as they lie, plain ones on a CPU, channels_last."""
    plain = type(maps) is type(weight) is Tensor and PACKED.get(weight.dtype)
    watched = _len_torch_dispatch_stack() or forward_ad._current_level >= 0
    return plain and not watched and _has_mkldnn and _get_mkldnn_enabled() and lie_as_rows(maps, MOST_PACKED)


def _count_step(*_):
    if not is_compiling():
        Kept.optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


def _tensors(layer):
    return [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]


def lower_precision(layer: nn.Module) -> torch.dtype | None:
    """Return the dtype that autocast takes on the layer's device, or None."""
    device = layer.conv_weights.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def rounded(tensor: Tensor, lower: torch.dtype | None) -> Tensor:
    """Return a tensor as autocast casts it."""
    return tensor.to(lower) if lower and tensor.dtype == torch.float32 else tensor
