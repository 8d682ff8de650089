"""Layers that are convolutions under another name: nn.Linear, one of 1x1, and nn.Conv1d, one of height 1.

While a model is converted, shells that hold such a convolution stand in their places; those whose convolution was not
converted give the layer back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import GEOMETRY
from linearconv_convert import surgery
from linearconv_convert.surgery import ConversionError, is_plain_conv2d, layers_of


class Conv2dAdapter(nn.Module):
    """A convolution that does the work of another layer."""

    def __init__(self, layer: nn.Module, geometry: dict[str, object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(**geometry, bias=layer.bias is not None, device="meta")
        weight = layer.weight.detach().view(self.conv.weight.shape)
        self.conv.weight, self.conv.bias = nn.Parameter(weight, layer.weight.requires_grad), layer.bias
        self._dimensions = layer.weight.ndim
        self._layer = [layer]  # in a list, so that its parameters are not the shell's too

    @property
    def weight(self) -> torch.Tensor:
        """The filters, of the shape of the layer's weight."""
        return self.conv.weight.flatten(self._dimensions - 1)

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias."""
        return self.conv.bias


class LinearAdapter(Conv2dAdapter):
    """An nn.Linear as a 1x1 convolution of the positions between the first dimension and the last."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(
            layer, {"in_channels": layer.in_features, "out_channels": layer.out_features, "kernel_size": 1}
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = torch.atleast_2d(input).unsqueeze(-2).flatten(1, -2)  # (N, L, C)
        maps = self.conv(rows.transpose(1, 2).unsqueeze(-1))  # (N, F, L, 1)
        return maps.squeeze(-1).transpose(1, 2).reshape(input.shape[:-1] + (maps.shape[1],))


class Conv1dAdapter(Conv2dAdapter):
    """An nn.Conv1d as a convolution of maps of height 1."""

    def __init__(self, layer: nn.Conv1d) -> None:
        pairs = {name: (1, *getattr(layer, name)) for name in ("kernel_size", "stride", "dilation")}
        padding = layer.padding if isinstance(layer.padding, str) else (0, *layer.padding)
        same = {name: getattr(layer, name) for name in ("in_channels", "out_channels", "groups", "padding_mode")}
        super().__init__(layer, {**pairs, **same, "padding": padding})

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.conv(input.unsqueeze(-2)).squeeze(-2)


ADAPTERS = {"conv1d": (nn.Conv1d, Conv1dAdapter), "linear": (nn.Linear, LinearAdapter)}
KINDS = ("conv2d", *ADAPTERS)


@contextmanager
def adapters_in_place(model: nn.Module, kinds: tuple[str, ...]) -> Iterator[None]:
    """Put shells in the places of a model's layers of some kinds, and give the layers back that were not converted.

    Layers of subclasses, the model itself, and those that share a parameter with others stay.

    Raises:
        ConversionError: for a kind that is none of `KINDS`.
    """
    if isinstance(kinds, str) or not set(kinds) <= set(KINDS):
        raise ConversionError(f"kinds must be several of {', '.join(KINDS)}, in a tuple, got {kinds!r}")
    counts = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        counts[parameter] = counts.get(parameter, 0) + 1
    shells = {}
    for kind, shell in (ADAPTERS[kind] for kind in kinds if kind in ADAPTERS):
        for layer in layers_of(model, kind).values():
            own = layer._parameters.values()
            alone = all(counts[each] == 1 for each in own if each is not None) and "weight" in layer._parameters
            if type(layer) is kind and layer is not model and alone and not isinstance(layer, nn.LazyLinear):
                shells[layer] = shell(layer)
    surgery.replace(model, shells)
    try:
        yield
    finally:
        remove_unused_adapters(model)


def remove_unused_adapters(model: nn.Module) -> None:
    """Put layers back in the places of those shells whose convolution is still a plain one."""
    shells = [shell for shell in layers_of(model, Conv2dAdapter).values() if shell._layer]
    surgery.replace(model, {shell: shell._layer[0] for shell in shells if isinstance(shell.conv, nn.Conv2d)})
    for shell in shells:
        shell._layer = None


PADDING_MODULES = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Identity)
SIZES = ((11, 12), (12, 15), (17, 14))  # of the images, beyond what the filters cover


class SamePad2d(nn.Module):
    """Pad with zeros so that a convolution has ceil(size / stride) outputs, the odd one behind, as TensorFlow does."""

    def __init__(self, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        widths = []
        for axis in (-1, -2):  # F.pad wants the last dimension first
            size, stride = input.shape[axis], self.stride[axis]
            covered = (-(-size // stride) - 1) * stride + self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing = torch.sym_max(covered - size, 0)  # traceable, as max() is not
            widths += [missing // 2, missing - missing // 2]
        return F.pad(input, widths)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def split_padding(layer: nn.Conv2d) -> tuple[nn.Module | None, nn.Conv2d] | None:
    """Return the padding module, or None, and the plain convolution that a layer consists of.

    The convolution has the layer's own parameters. None where the layer does anything else.
    """
    if is_plain_conv2d(layer):
        return None, layer
    own = list(layer.children())
    others = set(layer._parameters) != {"weight", "bias"} or layer._buffers or len(own) > 1
    if others or layer.weight.is_meta or not all(isinstance(module, PADDING_MODULES) for module in own):
        return None
    same = SamePad2d(layer.kernel_size, layer.stride, layer.dilation)
    for pad, padding in [*((each, 0) for each in (*own, same)), *((each, layer.padding) for each in (*own, None))]:
        conv = _plain(layer, padding)
        if _agree(layer, pad, conv):
            return pad, conv
    return None


def _plain(layer, padding):
    """An nn.Conv2d with the parameters of a layer."""
    conv = nn.Conv2d(**{name: getattr(layer, name) for name in GEOMETRY} | {"padding": padding}, device="meta")
    conv.weight, conv.bias = layer.weight, layer.bias
    return conv.train(layer.training)


@torch.no_grad()
def _agree(layer, pad, conv):
    """Whether a layer computes what padding module and convolution do."""
    was_training, generator = layer.training, torch.Generator().manual_seed(0)
    covered = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    try:
        for training in (False, True):
            layer.train(training)
            for sides in SIZES:
                shape = 2, layer.in_channels, *(side + more for side, more in zip(sides, covered, strict=True))
                images = torch.randn(shape, generator=generator).to(layer.weight)
                expected, found = layer(images), conv(images if pad is None else pad(images))
                if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-5, atol=1e-6):
                    return False
    except Exception:  # a subclass may ask for anything
        return False
    finally:
        layer.train(was_training)
    return True
