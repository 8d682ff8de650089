"""LinearConv: a convolution that learns P of its F filters and makes the other F - P as combinations of them.

    W = [W_p ; A W_p]        y = W * x + b        P = max(1, int(alpha F))

`W_p` are the primary filters, flattened to the rows of a (P, C/groups kh kw) matrix, and `A`, of shape (F - P, P),
combines them to the secondary filters. Convolution is linear, so for `groups == 1` the same output is had without
making a single filter, by combining feature maps:  y = [W_p * x ; A (W_p * x)] + b.

This file holds the layer and everything its variants share; a variant says only which matrices make up `A`:

    linearconv_lowrank.py     A = column @ row, of constant rank
    linearconv_rankratio.py   the same, the rank being a share of the primary filters
    linearconv_sparse.py      A = linear_weights * mask, pruned while it trains

Source: Kahatapitiya & Rodrigo, "Exploiting the Redundancy in Convolutional Filters for Parameter Reduction",
WACV 2021, arXiv 1907.11432.
"""

from inspect import Signature, signature
from math import prod

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled
from torch._C import _is_any_autocast_enabled
from torch.fx import Proxy

from linearconv_features import (
    Kept,
    apply_factors,
    combine,
    features_pay,
    in_plain_eager_mode,
    lie_as_rows,
    lower_precision,
    multiply_rows,
    rounded,
)

GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
COMPUTE_MODES = ("auto", "filters", "features")
FACTORS_PAY = 4  # times fewer multiply-adds than their product, which multiplies maps faster: thin matrices are slow


class LinearConv(nn.Module):
    r"""A drop-in replacement of :class:`torch.nn.Conv2d` with about `alpha` times its parameters.

    .. math::
        W = \begin{bmatrix} W_p \\ A W_p \end{bmatrix}, \qquad y = W \star x + b

    Arguments up to `dtype` are those of :class:`torch.nn.Conv2d`: same order, defaults, meaning and checks.

    Args:
        alpha: share of primary filters, 0 < alpha <= 1; there are `P = max(1, int(alpha * out_channels))`.
            With `alpha=1`, or a single output channel, nothing is left to combine: `linear_weights` is empty and
            the layer is a plain convolution. Default: 0.5
        compute: how the output is made. `"filters"` makes all F filters and convolves with them (the paper's
            way); `"features"` convolves with the primary filters and combines their feature maps; `"auto"` takes
            the faster one for the shape at hand, by the measured rule of linearconv_features.py. All agree to
            rounding. With `groups > 1` the secondary filters mix filters that see different inputs, so feature maps
            cannot be combined and filters are made whatever `compute` says. Default: `"auto"`

    Shapes:
        - input: (N, in_channels, H, W) or (in_channels, H, W)
        - output: (N, out_channels, H', W') or (out_channels, H', W'), H' and W' as for Conv2d

    Parameters:
        - conv_weights (P, in_channels / groups, kh, kw), Xavier uniform: the primary filters
        - linear_weights (out_channels - P, P), U(-0.1, 0.1): the coefficients `A`
        - bias (out_channels,), U(-0.1, 0.1), or None

    Raises:
        ValueError: for `alpha` outside (0, 1], an unknown `compute`, or what Conv2d refuses.

    With gradients off, filters are built once and reused until a parameter changes. Writing into `parameter.data` in
    place, or into shared memory by another process, escapes notice until the next pass with gradients or change between
    `train()` and `eval()`. `weight` is computed wherever it is read: what is written into it, as by
    `nn.init.normal_(layer.weight)` or `layer.weight.data.copy_()`, is lost. Write into the parameters.

    Example::

        >>> layer = LinearConv(64, 128, kernel_size=3, padding=1)
        >>> layer(torch.randn(8, 64, 32, 32)).shape
        torch.Size([8, 128, 32, 32])
        >>> sum(p.numel() for p in layer.parameters())     # Conv2d: 73856
        41088
    """

    transposed, output_padding = False, (0, 0)  # as in nn.Conv2d
    _last_choice = None, ""  # what it was made for, and the way

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 0.5,
        compute: str = "auto",
    ) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        if compute not in COMPUTE_MODES:
            raise ValueError(f"compute must be one of {', '.join(COMPUTE_MODES)}, got {compute!r}")
        # Conv2d itself checks and normalises its arguments; on the meta device it allocates and draws nothing.
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta"
        )
        for name in GEOMETRY:
            setattr(self, name, getattr(conv, name))
        self._pad_widths = conv._reversed_padding_repeated_twice  # as F.pad wants them, last dimension first
        self.compute = compute
        self.filter_size = in_channels // groups * prod(self.kernel_size)  # K
        self._kept = Kept()

        factory = {"device": device, "dtype": dtype}
        self._create_weights(alpha, **factory)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _create_weights(self, alpha, **factory):
        """Create primary filters and coefficients, without values, for a share `alpha` of primary filters."""
        self.alpha = alpha
        self.primary_channels = max(1, int(alpha * self.out_channels))
        self.secondary_channels = self.out_channels - self.primary_channels
        shape = self.primary_channels, self.in_channels // self.groups, *self.kernel_size
        self.conv_weights = nn.Parameter(torch.empty(shape, **factory))
        self._create_factors(**factory)
        self.factor_shapes = [tuple(factor.shape) for factor in self.factors()]
        self.coefficient_count = sum(map(prod, self.factor_shapes))
        full_size = self.secondary_channels * self.primary_channels
        self._factors_pay = len(self.factor_shapes) == 1 or FACTORS_PAY * self.coefficient_count <= full_size
        self.multiplied_coefficients = self.coefficient_count if self._factors_pay else full_size

    # ---- what a variant overrides ------------------------------------------------------------------------------

    def _create_factors(self, **factory):
        """Create the parameters that make up `A`; called once, when the geometry is known."""
        self.linear_weights = nn.Parameter(torch.empty(self.secondary_channels, self.primary_channels, **factory))

    def factors(self) -> tuple[Tensor, ...]:
        """Return the matrices whose product, from left to right, is `A` (F - P, P)."""
        return (self.linear_weights,)

    # ---- parameters and filters --------------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Xavier uniform for the primary filters, U(-0.1, 0.1) for the rest."""
        for name, parameter in self.named_parameters(recurse=False):
            if name == "conv_weights":
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.uniform_(parameter, -0.1, 0.1)

    @property
    def weight(self) -> Tensor:
        """All filters (F, C/groups, kh, kw), primary before secondary; differentiable with respect to both parts.

        They lie in memory as `conv_weights` do: contiguous or channels_last.
        """
        return self._make_filters(self.conv_weights, *self.factors())

    def _make_filters(self, primary, *factors):
        channels, width = self.in_channels // self.groups, self.kernel_size[1]
        channels_last = primary.stride()[1:] == (1, width * channels, channels)  # also where is_contiguous() says both
        filters = primary.permute(0, 2, 3, 1) if channels_last else primary  # no copy
        rows = filters.flatten(1)
        filters = torch.cat((rows, apply_factors(factors, rows))).unflatten(1, filters.shape[1:])
        return filters.permute(0, 3, 1, 2) if channels_last else filters

    def fuse(self) -> nn.Conv2d:
        """Return the equivalent `nn.Conv2d` (F filters, equal output to rounding), sharing no memory with the layer."""
        conv = nn.Conv2d(**{name: getattr(self, name) for name in GEOMETRY}, bias=False, device="meta")
        with torch.no_grad():
            conv.weight = nn.Parameter(self.weight.clone(), self.conv_weights.requires_grad)
            if self.bias is not None:
                conv.bias = nn.Parameter(self.bias.clone(), self.bias.requires_grad)
        return conv.train(self.training)

    def switch_to_deploy(self) -> None:
        """Become, in place, the layer of `alpha=1` that has all filters; RepVGG's and timm's name for it."""
        filters, requires_grad = self.weight.detach(), self.conv_weights.requires_grad
        self._create_weights(1.0, device=filters.device, dtype=filters.dtype)
        self.conv_weights = nn.Parameter(filters, requires_grad)
        self._kept.clear()

    # ---- evaluation --------------------------------------------------------------------------------------------

    def macs_per_position(self, mode: str) -> int:
        """Return the multiply-adds per output position of one image; making filters, done once a weight, is not in it.

        Args:
            mode: `"filters"`: F K; `"features"`: P K plus the elements of the matrices that combine, which are
                the factors of `A`, or `A` where these would save little (K = in_channels / groups * kh * kw).
        """
        if mode == "filters":
            return self.out_channels * self.filter_size
        return self.primary_channels * self.filter_size + self.multiplied_coefficients

    def macs_of_making(self, mode: str) -> int:
        """Return the multiply-adds of what a training pass makes first: all filters, or `A` where it is used whole."""
        if mode == "filters":
            return self.coefficient_count * self.filter_size
        (rows, inner), *_ = self.factor_shapes
        return 0 if self._factors_pay else rows * inner * self.primary_channels

    def mode_at(
        self, positions: int | None = None, training: bool = True, precision: str = "float32", device: str = "cpu"
    ) -> str:
        """Return `"filters"` or `"features"`: the way this layer is evaluated.

        Args:
            positions: output positions of the batch, N H' W'; very many where left out.
            training: with gradients on, or not.
            precision: `"float32"`, or `"bfloat16"` for all 16-bit types, under autocast too.
            device: `"cpu"` or `"cuda"`.
        """
        if self.groups > 1 or self.secondary_channels == 0:
            return "filters"
        if self.compute != "auto":
            return self.compute
        pays = features_pay(
            spared=self.secondary_channels * self.filter_size,
            coefficients=self.multiplied_coefficients,
            out_channels=self.out_channels,
            operations=1 + len(self.factor_shapes),
            making=self.macs_of_making("filters") - self.macs_of_making("features") if training else 0,
            positions=positions,
            training=training,
            precision=precision,
            device=device,
        )
        return "features" if pays else "filters"

    def _mode_for(self, padded, eager):
        """The way this input is evaluated."""
        device = "cuda" if padded.is_cuda else "cpu"
        if self.compute != "auto" or self.groups > 1 or self.secondary_channels == 0 or not eager:
            return self.mode_at(device=device)
        asked = padded.shape, padded.dtype, device, is_grad_enabled(), _is_any_autocast_enabled()
        known, mode = self._last_choice
        if asked != known:
            precision = "bfloat16" if padded.dtype.itemsize == 2 or _is_any_autocast_enabled() else "float32"
            mode = self.mode_at(self._positions(padded.shape), is_grad_enabled(), precision, device)
            self._last_choice = asked, mode
        return mode

    def _positions(self, shape):
        """Number of output positions (N H' W') of an input, padded already where the padding is not of zeros."""
        widths = self._pad_widths if self.padding_mode == "zeros" else (0, 0, 0, 0)
        positions = shape[0]
        for axis, before in ((-1, 0), (-2, 2)):  # the widths are those of the last dimension first
            size = shape[axis] + widths[before] + widths[before + 1]
            window = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            positions *= (size - window) // (self.stride[axis] or 1) + 1  # the convolution itself refuses a stride of 0
        return positions

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy) and (path := input.tracer.path_of_module(self)):  # a leaf of torch.fx, as Conv2d is
            return input.tracer.create_proxy("call_module", path, (input,), {})
        if not (eager := in_plain_eager_mode()):
            return self._evaluate(input, eager)
        try:
            return self._evaluate(input, eager)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            try:
                with torch.no_grad():
                    self.fuse()(input)
            except Exception as theirs:  # nn.Conv2d's words for what is wrong with the input
                raise theirs from None
            raise

    def _evaluate(self, input, eager):
        if input.dim() == 3:
            return self._evaluate(input.unsqueeze(0), eager).squeeze(0)
        padded = input if self.padding_mode == "zeros" else F.pad(input, self._pad_widths, self.padding_mode)
        keeping = eager and not is_grad_enabled()
        if eager and not keeping:
            self._kept.clear()  # whoever differentiates is about to change a parameter
        if self._mode_for(padded, eager) == "features":
            return self._combine(padded, eager, keeping)
        weight, bias = self._kept.get(self, "_filters_and_bias") if keeping else self._filters_and_bias()
        return self._convolve(padded, weight, bias, eager)  # [W_p ; A W_p] * x + b, the paper's way

    def _combine(self, padded, eager, keeping):
        """[y_p ; A y_p] + b, with the bias folded into both convolutions so that the output is written once.

        y_p carries its bias b_p already, so the secondary half adds b_s - A b_p instead of b_s.
        """
        parts = self._kept.get(self, "_parts") if keeping else self._parts()
        weight, primary_bias, shift, *factors = parts
        primary = self._convolve(padded, weight, primary_bias, keeping)  # (N, P, H', W')
        source = (padded, weight, primary_bias) if eager and not keeping else None
        return combine(primary, factors, shift, source, self._kept)

    def _filters_and_bias(self):
        if self.secondary_channels == 0 and not is_grad_enabled() and in_plain_eager_mode():
            return self.conv_weights, self.bias  # with gradients on, the empty coefficients are to get theirs
        parts = self.conv_weights, *self.factors()
        if _is_any_autocast_enabled():  # rounded once each; autocast would round the secondary filters twice
            parts = [rounded(part, lower_precision(self)) for part in parts]
        return self._make_filters(*parts), self.bias

    def _parts(self):
        factors = self.factors()
        if not self._factors_pay:
            factors = (apply_factors(factors[:-1], factors[-1]),)
        if self.bias is None:
            return self.conv_weights, None, None, *factors
        primary_bias, secondary_bias = self.bias.split((self.primary_channels, self.secondary_channels))
        return self.conv_weights, primary_bias, secondary_bias - apply_factors(factors, primary_bias), *factors

    def _convolve(self, padded, weight, bias, eager):
        padding = self.padding if self.padding_mode == "zeros" else (0, 0)
        if eager and not is_grad_enabled() and not isinstance(padding, str):
            return self._kept.convolve(padded, weight, bias, padding, self.stride, self.dilation, self.groups)
        is_pointwise = self.kernel_size == self.stride == (1, 1) and padding == (0, 0) and self.groups == 1
        if is_pointwise and eager and lie_as_rows(padded):
            return multiply_rows(padded, weight.flatten(1), bias)
        return F.conv2d(padded, weight, bias, self.stride, padding, self.dilation, self.groups)

    def train(self, mode: bool = True) -> "LinearConv":
        if mode != self.training:
            self._kept.clear()
        return super().train(mode)

    def __getstate__(self):
        return {**self.__dict__, "_kept": Kept()}

    def __prepare_scriptable__(self):
        raise RuntimeError("torch.jit.script cannot compile LinearConv; torch.jit.trace and torch.export can")

    def __init_subclass__(cls) -> None:
        """Write out what *args and **kwargs of a variant stand for, where nn.utils.skip_init and help() look."""
        super().__init_subclass__()
        _, *own = signature(cls.__init__).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in own):
            own = *getattr(cls, "__signature__", signature(LinearConv)).parameters.values(), *own
        named = {p.name: p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        cls.__signature__ = Signature(named.values())

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, alpha={self.alpha:g}, compute={self.compute!r}"
