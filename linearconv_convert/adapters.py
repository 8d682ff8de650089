"""Layers that are equivalent to a plain convolution: nn.Linear, nn.Conv1d, and subclasses of nn.Conv2d that only pad.

During a conversion, adapters that hold an nn.Conv2d replace the nn.Linear and nn.Conv1d layers of a model. Afterwards
the layers whose convolution was not converted are restored. A convolution that pads its input, such as timm's
`Conv2dSame`, is split into a padding module and an nn.Conv2d if a test with random images gives equal outputs.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import GEOMETRY
from linearconv_convert import surgery
from linearconv_convert.surgery import ConversionError, is_patched, is_plain_conv2d, layers_of

PADDING_MODULES = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Identity)
SIZES = ((11, 12), (12, 15), (17, 14))  # of random test images, in addition to the extent of the filters


class Conv2dAdapter(nn.Module):
    """A convolution that is equivalent to another layer."""

    def __init__(self, layer: nn.Module, **geometry: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(**geometry, bias=layer.bias is not None, device="meta")
        weight = layer.weight.detach().view(self.conv.weight.shape)
        self.conv.weight, self.conv.bias = nn.Parameter(weight, layer.weight.requires_grad), layer.bias
        for name in layer.__constants__:  # in_features, kernel_size and others, which a network may read
            setattr(self, name, getattr(layer, name))
        self._dimensions = layer.weight.ndim
        self._layer = [layer]  # a list hides the parameters of the layer from the adapter

    @property
    def weight(self) -> torch.Tensor:
        """The filters, with the shape of the layer's weight."""
        return self.conv.weight.flatten(self._dimensions - 1)

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias."""
        return self.conv.bias


class LinearAdapter(Conv2dAdapter):
    """An nn.Linear as a 1x1 convolution of one-pixel images."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, in_channels=layer.in_features, out_channels=layer.out_features, kernel_size=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        maps = self.conv(input.reshape(-1, self.in_features, 1, 1))  # (rows, F, 1, 1)
        return maps.reshape(input.shape[:-1] + (maps.shape[1],))


class Conv1dAdapter(Conv2dAdapter):
    """An nn.Conv1d as a convolution of feature maps of height 1."""

    def __init__(self, layer: nn.Conv1d) -> None:
        pairs = {name: (1, *getattr(layer, name)) for name in ("kernel_size", "stride", "dilation")}
        padding = layer.padding if isinstance(layer.padding, str) else (0, *layer.padding)
        same = {name: getattr(layer, name) for name in ("in_channels", "out_channels", "groups", "padding_mode")}
        super().__init__(layer, **pairs, **same, padding=padding)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.conv(input.unsqueeze(-2)).squeeze(-2)


ADAPTERS = {"conv1d": (nn.Conv1d, Conv1dAdapter), "linear": (nn.Linear, LinearAdapter)}
KINDS = ("conv2d", *ADAPTERS)


@contextmanager
def adapters_in_place(model: nn.Module, kinds: tuple[str, ...]) -> Iterator[None]:
    """Replace the layers of the given kinds by adapters, and restore the layers that were not converted.

    Instances of subclasses, the model itself, and layers that share a parameter with other layers are not replaced.

    Raises:
        ConversionError: for a kind that is not in `KINDS`.
    """
    if isinstance(kinds, str) or not set(kinds) <= set(KINDS):
        raise ConversionError(f"kinds must be several of {', '.join(KINDS)}, in a tuple, got {kinds!r}")
    uses = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    adapters = {}
    for kind, adapter in (ADAPTERS[kind] for kind in kinds if kind in ADAPTERS):
        for layer in layers_of(model, kind).values():
            is_own = "weight" in layer._parameters and all(uses[parameter] == 1 for parameter in layer.parameters())
            if type(layer) is kind and layer is not model and is_own and not is_patched(layer):
                adapters[layer] = adapter(layer)
    surgery.replace(model, adapters)
    try:
        yield
    finally:
        remove_unused_adapters(model)


def remove_unused_adapters(model: nn.Module) -> None:
    """Restore the layers of all adapters whose convolution is still an nn.Conv2d."""
    adapters = [adapter for adapter in layers_of(model, Conv2dAdapter).values() if adapter._layer]
    unused = [adapter for adapter in adapters if isinstance(adapter.conv, nn.Conv2d)]
    surgery.replace(model, {adapter: adapter._layer[0] for adapter in unused})
    for adapter in adapters:
        adapter._layer = None


# ---- convolutions that pad their input -------------------------------------------------------------------------------


class SamePad2d(nn.Module):
    """Zero padding to ceil(size / stride) outputs of a convolution, with an odd zero at the end, as in TensorFlow."""

    def __init__(self, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        widths = []
        for axis in (-1, -2):  # F.pad takes the last dimension first
            size, stride = input.shape[axis], self.stride[axis]
            window = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing = (-(-size // stride) - 1) * stride + window - size
            if window < stride:  # otherwise `missing` is never negative
                missing = torch.sym_max(missing, 0)  # unlike max(), torch.sym_max is traceable
            widths += [missing // 2, missing - missing // 2]
        return F.pad(input, widths)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def split_padding(layer: nn.Conv2d) -> tuple[nn.Module | None, nn.Conv2d] | None:
    """Return the padding module, or None, and the plain convolution that are equivalent to a layer.

    The convolution shares the parameters of the layer. The result is None if the layer has no such equivalent.
    """
    if is_plain_conv2d(layer):
        return None, layer
    own = list(layer.children())
    has_more = set(layer._parameters) != {"weight", "bias"} or layer._buffers or len(own) > 1
    if has_more or layer.weight.is_meta or not all(isinstance(module, PADDING_MODULES) for module in own):
        return None
    pads = [*own, SamePad2d(layer.kernel_size, layer.stride, layer.dilation)]
    for pad, padding in [*((pad, 0) for pad in pads), *((pad, layer.padding) for pad in (*own, None))]:
        conv = nn.Conv2d(**{name: getattr(layer, name) for name in GEOMETRY} | {"padding": padding}, device="meta")
        conv.weight, conv.bias = layer.weight, layer.bias
        if _outputs_agree(layer, pad, conv):
            return pad, conv.train(layer.training)
    return None


@torch.no_grad()
def _outputs_agree(layer, pad, conv):
    """True if a layer equals a padding module and a convolution, in training mode and in eval mode."""
    generator = torch.Generator().manual_seed(0)
    covered = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    try:
        layer = copy.deepcopy(layer)  # a forward pass may change the layer
        for training in (False, True):
            layer.train(training)
            for height, width in SIZES:
                shape = 2, layer.in_channels, height + covered[0], width + covered[1]
                images = torch.randn(shape, generator=generator).to(layer.weight)
                expected, found = layer(images), conv(images if pad is None else pad(images))
                if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-5, atol=1e-6):
                    return False
    except Exception:  # a subclass may raise any error
        return False
    return True
