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

from math import prod

import torch
import torch.nn as nn
import torch.nn.functional as F

from feature_maps import Keeper, Source, combine

COMPUTE_MODES = ("auto", "filters", "features")


class LinearConv(nn.Module):
    r"""A drop-in replacement of :class:`torch.nn.Conv2d` with about `alpha` times its parameters.

    .. math::
        W = \begin{bmatrix} W_p \\ A W_p \end{bmatrix}, \qquad y = W \star x + b

    Arguments up to `dtype` are those of :class:`torch.nn.Conv2d`: same order, defaults, meaning and checks.

    Args:
        alpha (float): share of primary filters, 0 < alpha <= 1; there are `P = max(1, int(alpha * out_channels))`.
            With `alpha=1`, or a single output channel, nothing is left to combine: `linear_weights` is empty and
            the layer is a plain convolution. Default: 0.5
        compute (str): how the output is made. `"filters"` makes all F filters and convolves with them (the paper's
            way); `"features"` convolves with the primary filters and combines their feature maps; `"auto"` takes
            the one with fewer multiply-adds per output position. All agree to rounding. With `groups > 1` the
            secondary filters mix filters that see different inputs, so feature maps cannot be combined and
            filters are made whatever `compute` says. Default: `"auto"`

    Shapes:
        - input: (N, in_channels, H, W) or (in_channels, H, W)
        - output: (N, out_channels, H', W') or (out_channels, H', W'), H' and W' as for Conv2d

    Parameters:
        - conv_weights (P, in_channels / groups, kh, kw), Xavier uniform: the primary filters
        - linear_weights (out_channels - P, P), U(-0.1, 0.1): the coefficients `A`
        - bias (out_channels,), U(-0.1, 0.1), or None

    Raises:
        ValueError: for `alpha` outside (0, 1], an unknown `compute`, or what Conv2d refuses.

    In eval mode with gradients off, filters are built once and reused until a parameter changes. A change is seen
    by the parameter's version counter and storage; writing into `parameter.data` in place escapes both and is seen
    only after the next `train()` or `eval()`.

    Example::

        >>> layer = LinearConv(64, 128, kernel_size=3, padding=1)
        >>> layer(torch.randn(8, 64, 32, 32)).shape
        torch.Size([8, 128, 32, 32])
        >>> sum(p.numel() for p in layer.parameters())     # Conv2d: 73856
        41088
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        alpha=0.5,
        compute="auto",
    ):
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        if compute not in COMPUTE_MODES:
            raise ValueError(f"compute must be one of {', '.join(COMPUTE_MODES)}, got {compute!r}")
        # Conv2d itself checks and normalises its arguments; on the meta device it allocates and draws nothing.
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta"
        )
        self.in_channels = conv.in_channels
        self.out_channels = conv.out_channels
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.groups = conv.groups
        self.padding_mode = conv.padding_mode
        self._pad_widths = conv._reversed_padding_repeated_twice  # as F.pad wants them, last dimension first
        self.alpha = alpha
        self.compute = compute
        self.primary_channels = max(1, int(alpha * out_channels))
        self.secondary_channels = out_channels - self.primary_channels
        self.filter_size = in_channels // groups * prod(self.kernel_size)  # K
        self._kept = None  # see _unless_changed
        self._keeper = Keeper()

        factory = {"device": device, "dtype": dtype}
        self.conv_weights = nn.Parameter(
            torch.empty(self.primary_channels, in_channels // groups, *self.kernel_size, **factory)
        )
        self._create_factors(**factory)
        self.coefficient_count = sum(p.numel() for p in self.parameters()) - self.conv_weights.numel()
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    # ---- what a variant overrides ------------------------------------------------------------------------------

    def _create_factors(self, **factory):
        """Create the parameters that make up `A`; called once, when the geometry is known."""
        self.linear_weights = nn.Parameter(torch.empty(self.secondary_channels, self.primary_channels, **factory))

    def factors(self):
        """The matrices whose product, from left to right, is `A` (F - P, P)."""
        return (self.linear_weights,)

    # ---- parameters and filters --------------------------------------------------------------------------------

    def reset_parameters(self):
        """Draw all parameters anew: Xavier uniform for the primary filters, U(-0.1, 0.1) for the rest."""
        for name, parameter in self.named_parameters(recurse=False):
            if name == "conv_weights":
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.uniform_(parameter, -0.1, 0.1)

    @property
    def weight(self):
        """All filters (F, C/groups, kh, kw), primary before secondary; differentiable with respect to both parts."""
        primary = self.conv_weights.flatten(1)  # (P, K), K = C/groups * kh * kw
        secondary = _apply_factors(self.factors(), primary)  # (F - P, K)
        return torch.cat((primary, secondary)).unflatten(1, self.conv_weights.shape[1:])

    def fuse(self):
        """The equivalent plain `nn.Conv2d` (F filters, equal output to rounding), sharing no memory with the layer."""
        conv = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device=self.conv_weights.device,
            dtype=self.conv_weights.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            if self.bias is not None:
                conv.bias.copy_(self.bias)
                conv.bias.requires_grad_(self.bias.requires_grad)
        conv.weight.requires_grad_(self.conv_weights.requires_grad)
        return conv.train(self.training)

    # ---- evaluation --------------------------------------------------------------------------------------------

    def macs_per_position(self, mode):
        """Multiply-adds per output position of one image; making filters is not counted, it is done once a weight.

        Args:
            mode (str): `"filters"`: F K; `"features"`: P K plus the elements of the factors of `A`
                (K = in_channels / groups * kh * kw).
        """
        if mode == "filters":
            return self.out_channels * self.filter_size
        return self.primary_channels * self.filter_size + self.coefficient_count

    @property
    def mode(self):
        """`"filters"` or `"features"`: the way this layer is evaluated, given its shape and `compute`."""
        if self.groups > 1 or self.secondary_channels == 0:
            return "filters"
        if self.compute != "auto":
            return self.compute
        return min(("features", "filters"), key=self.macs_per_position)

    def forward(self, input):
        if self.mode == "features":
            return self._combine_features(input)
        return self._convolve(self._pad(input), self._unless_changed(self._make_filters), self.bias)

    def _combine_features(self, input):
        """[y_p ; A y_p] + b, with the bias folded into both convolutions so that the output is written once.

        y_p carries its bias b_p already, so the secondary half adds b_s - A b_p instead of b_s.
        """
        factors, primary_bias, shift = self._unless_changed(self._factors_and_biases)
        source = Source(self._pad(input), self.conv_weights, primary_bias)
        primary = self._convolve(*source)  # (N, P, H', W')
        return combine(primary, factors, shift, source, self._keeper if in_plain_eager_mode() else None)

    def _factors_and_biases(self):
        factors = self.factors()
        if self.bias is None:
            return factors, None, None
        primary_bias, secondary_bias = self.bias.split((self.primary_channels, self.secondary_channels))
        return factors, primary_bias, secondary_bias - _apply_factors(factors, primary_bias)

    def _pad(self, input):
        """Pad as `padding_mode` says; zeros are left to the convolution."""
        return input if self.padding_mode == "zeros" else F.pad(input, self._pad_widths, mode=self.padding_mode)

    def _convolve(self, padded, weight, bias):
        padding = self.padding if self.padding_mode == "zeros" else 0
        return F.conv2d(padded, weight, bias, self.stride, padding, self.dilation, self.groups)

    # ---- what is kept for inference --------------------------------------------------------------------------------

    def _unless_changed(self, make):
        """`make()`, kept between calls where nothing can be differentiated through it and its sources are unchanged."""
        if not in_plain_eager_mode() or self.conv_weights.is_meta:
            return make()
        if self.training or torch.is_grad_enabled():
            self._kept = None  # an optimizer step may come of this pass, and fused ones count no versions
            return make()
        sources = [*self._parameters.values(), *self._buffers.values()]
        sources = [source for source in sources if source is not None]
        if any(type(source) not in (nn.Parameter, torch.Tensor) or source.is_inference() for source in sources):
            return make()  # inference tensors count no versions; tensor subclasses may hide their storage
        key = [(source._version, source.data_ptr(), source.dtype, source.device) for source in sources]
        if self._kept is None or self._kept[0] != (make.__name__, key):
            # Normal tensors in full precision, whatever inference or autocast mode the first caller was in. The
            # sources' memory is held along, so that no later tensor can stand at the same address.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
                self._kept = (make.__name__, key), make(), [source.detach() for source in sources]
        return self._kept[1]

    def _make_filters(self):
        return self.weight

    def train(self, mode=True):
        self._kept = None
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._kept = None
        return super()._apply(fn, recurse)

    def __getstate__(self):
        return {**self.__dict__, "_kept": None}

    def extra_repr(self):
        text = "{in_channels}, {out_channels}, kernel_size={kernel_size}, stride={stride}"
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={{{name}!r}}"
        if self.bias is None:
            text += ", bias=False"
        return (text + ", alpha={alpha:g}, compute={compute!r}").format(**self.__dict__)


def in_plain_eager_mode():
    """False while torch.compile, torch.export, torch.jit.trace or a torch.func transform runs the layer.

    Those see tensors that stand for others: nothing made from them may be kept, and no layer state may be changed.
    """
    return not (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    )


def _apply_factors(factors, right):
    """factors[0] @ factors[1] @ ... @ right, from the right, so that no product of factors is made."""
    for factor in reversed(factors):
        right = factor @ right
    return right
