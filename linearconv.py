"""LinearConv: a convolution that learns P of its F filters, and combines them linearly to the other F - P.

    W = [W_p ; A W_p]        y = W * x + b = [W_p * x ; A (W_p * x)] + b        P = max(1, int(alpha F))

The rows of `W_p` (P, K) are the primary filters, flattened to K = C/groups kh kw elements. The coefficients `A`
(F - P, P) combine the filters or, because convolution is linear, their feature maps. The variants in linearconv_*.py
only define other matrices whose product is `A`.

Source: Kahatapitiya & Rodrigo, "Exploiting the Redundancy in Convolutional Filters for Parameter Reduction", WACV 2021
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

__version__ = "0.2.0"
GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
COMPUTE_MODES = ("auto", "filters", "features")
MAP_COST = 64  # time to concatenate one element of the output, in multiply-adds of a convolution (benchmarks/layers.py)


class LinearConv(nn.Module):
    """A drop-in replacement for :class:`torch.nn.Conv2d` with about `alpha` times its parameters.

    The arguments up to `dtype` are those of :class:`torch.nn.Conv2d`, with the same order, defaults and checks.

    Args:
        alpha: share of primary filters, 0 < alpha <= 1. With `alpha=1` there are no secondary filters,
            `linear_weights` is empty and the layer is a plain convolution. Default: 0.5
        compute: `"filters"` builds all F filters and convolves with them, as the paper does. `"features"` convolves
            with the primary filters and combines their feature maps. The outputs are equal to rounding. `"auto"`
            chooses by :attr:`combines_maps`. Default: `"auto"`

    Shapes: input (N, in_channels, H, W), output (N, out_channels, H', W'), both also without N; H', W' as for Conv2d

    Parameters:
        - conv_weights (P, in_channels / groups, kh, kw), Xavier uniform: the primary filters
        - linear_weights (out_channels - P, P), U(-0.1, 0.1): the coefficients `A`
        - bias (out_channels,), U(-0.1, 0.1), or None

    Raises: ValueError if `alpha` is outside (0, 1], `compute` is unknown, or Conv2d refuses an argument.

    Example::

        >>> sum(p.numel() for p in LinearConv(64, 128, 3).parameters())     # Conv2d: 73856
        41088
    """

    output_padding = (0, 0)  # an attribute of Conv2d, which Conv2d.extra_repr reads

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
            raise ValueError(f"alpha must be in (0, 1], got {alpha}")
        if compute not in COMPUTE_MODES:
            raise ValueError(f"compute must be one of {', '.join(COMPUTE_MODES)}, got {compute!r}")
        geometry = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        conv = nn.Conv2d(*geometry, device="meta")  # type: ignore[arg-type]  # checks and normalises the arguments
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self.alpha, self.compute = alpha, compute
        self.primary_channels = max(1, int(alpha * out_channels))  # P
        self.secondary_channels = out_channels - self.primary_channels  # F - P
        shape = self.primary_channels, in_channels // groups, *self.kernel_size
        factory: dict = {"device": device, "dtype": dtype}
        self.conv_weights = nn.Parameter(torch.empty(shape, **factory))
        self._create_factors(**factory)
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.filter_size = self.conv_weights[0].numel()  # K
        self.coefficients = sum(factor.numel() for factor in self.factors())
        self.reset_parameters()

    def _create_factors(self, **factory):
        """Create the parameters of `A`. A variant overrides this method and :meth:`factors`."""
        self.linear_weights = nn.Parameter(torch.empty(self.secondary_channels, self.primary_channels, **factory))

    def factors(self) -> tuple[Tensor, ...]:
        """Return the matrices whose product, from left to right, is `A` (F - P, P)."""
        return (self.linear_weights,)

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Xavier uniform for the primary filters, U(-0.1, 0.1) for the others."""
        nn.init.xavier_uniform_(self.conv_weights)
        for name, parameter in self.named_parameters(recurse=False):
            if name != "conv_weights":
                nn.init.uniform_(parameter, -0.1, 0.1)

    @property
    def weight(self) -> Tensor:
        """All filters (F, C/groups, kh, kw), primary before secondary; differentiable and read-only."""
        primary = self.conv_weights.flatten(1)  # (P, K)
        filters = torch.cat((primary, _multiply(self.factors(), primary)))  # (F, K)
        return filters.unflatten(1, (self.in_channels // self.groups, *self.kernel_size))

    @property
    def combines_maps(self) -> bool:
        """True if the layer combines feature maps, False if it builds all filters.

        Per output position, combining saves (F - P) K multiply-adds and costs those of `A` and the concatenation. With
        `groups > 1` it is impossible: combined filters have different inputs. On a GPU, `"auto"` always builds filters.
        """
        saved = self.secondary_channels * self.filter_size - self.coefficients - MAP_COST * self.out_channels
        is_wanted = self.compute == "features" or (self.compute == "auto" and saved > 0)
        return is_wanted and self.groups == 1 and self.secondary_channels > 0

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._padding_widths(), self.padding_mode), (0, 0)
        geometry: tuple = self.stride, padding, self.dilation, self.groups
        is_on_gpu = any(parameter.is_cuda for parameter in self.parameters())
        if not self.combines_maps or (self.compute == "auto" and is_on_gpu):
            return F.conv2d(input, self.weight, self.bias, *geometry)  # W * x + b
        # [y_p ; A y_p + (b_s - A b_p)] with y_p = W_p * x + b_p
        primary_bias = shift = None
        first, *others = self.factors()
        if self.bias is not None:
            primary_bias, secondary_bias = self.bias.split((self.primary_channels, self.secondary_channels))
            shift = secondary_bias - _multiply((first, *others), primary_bias)
        primary = maps = F.conv2d(input, self.conv_weights, primary_bias, *geometry)  # (N, P, H', W')
        for factor in reversed(others):
            maps = F.conv2d(maps, factor[:, :, None, None])
        secondary = F.conv2d(maps, first[:, :, None, None], shift)  # (N, F - P, H', W')
        return torch.cat((primary, secondary), dim=-3)

    def _padding_widths(self):
        """The widths of the padding as F.pad takes them, those of the last dimension first."""
        same = [step * (size - 1) for step, size in zip(self.dilation, self.kernel_size, strict=True)]
        totals = {"same": same, "valid": (0, 0)}.get(self.padding) or [2 * width for width in self.padding]
        return [width for total in reversed(totals) for width in (total // 2, total - total // 2)]

    def fuse(self) -> nn.Conv2d:
        """Return the equivalent `nn.Conv2d`, with equal outputs to rounding and memory of its own."""
        conv = nn.Conv2d(**{name: getattr(self, name) for name in GEOMETRY}, bias=False, device="meta")
        conv.weight = nn.Parameter(self.weight.detach(), self.conv_weights.requires_grad)
        conv.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return conv.train(self.training)

    def switch_to_deploy(self) -> None:
        """Become, in place, the layer with `alpha=1` that has all filters as its parameters."""
        self.conv_weights = nn.Parameter(self.weight.detach(), self.conv_weights.requires_grad)
        self.alpha, self.primary_channels, self.secondary_channels = 1.0, self.out_channels, 0
        self._create_factors(device=self.conv_weights.device, dtype=self.conv_weights.dtype)

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, alpha={self.alpha:g}, compute={self.compute!r}"  # type: ignore[arg-type]


def _multiply(factors, right):
    for factor in reversed(factors):
        right = factor @ right
    return right  # factors[0] @ factors[1] @ ... @ right
