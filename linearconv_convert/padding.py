"""Subclasses of nn.Conv2d that only pad and convolve, taken apart into a padding module and a plain convolution.

Libraries have many of them: timm's `Conv2dSame`, `Conv2dStaticSamePadding` of the EfficientNets, wrappers that keep old
behaviour. They are known by what they compute: a layer is taken apart where its outputs are those of its parts, for
random images of several sizes, in training and in eval mode.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import GEOMETRY
from linearconv_convert.surgery import is_plain_conv2d

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


def take_apart(layer: nn.Conv2d) -> tuple[nn.Module | None, nn.Conv2d] | None:
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
