"""Convolutions that only pad besides are taken apart; what does anything else is left alone."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import LinearConv
from linearconv_convert import convert, fold
from linearconv_convert.padding import SamePad2d, take_apart
from tests.helpers.layers import relative_error
from tests.helpers.networks import disturb


class Static(nn.Conv2d):
    """Padding of its own, as Conv2dStaticSamePadding."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Wrapped(nn.Conv2d):
    def forward(self, x):
        return x if x.numel() == 0 else super().forward(x)


class Noisy(nn.Conv2d):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x) if self.training else x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, self.stride, self.padding)


def same(*arguments, **settings):
    pytest.importorskip("timm")
    from timm.layers import Conv2dSame

    return Conv2dSame(*arguments, **settings)


@pytest.mark.parametrize(
    "build, pad, padding",
    [(same, SamePad2d, (0, 0)), (Static, nn.ZeroPad2d, (0, 0)), (Wrapped, type(None), (1, 1))],
    ids=["timm", "static", "wrapped"],
)
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "bias": False}, {"dilation": 2, "groups": 2}])
def test_layers_that_pad_are_converted_with_equal_outputs(build, pad, padding, settings):
    torch.manual_seed(0)
    layer = build(4, 8, (3, 5), padding=padding, **settings).double().eval()
    images = torch.randn(2, 4, 19, 22, dtype=torch.float64)
    found, conv = take_apart(layer)
    assert type(found) is pad and conv.weight is layer.weight
    model = disturb(nn.Sequential(layer, nn.BatchNorm2d(8))).double().eval()
    plain = fold(model, batch_norm=True)
    assert type(plain[1]) is nn.Identity and relative_error(plain(images), model(images)) < 1e-12
    same_model = convert(model, "rank", alpha=1.0, grow=True)
    assert any(isinstance(module, LinearConv) for module in same_model.modules())
    assert relative_error(same_model(images), model(images)) < 1e-12
    folded = fold(same_model, batch_norm=True)
    assert type(folded[1]) is nn.Identity and relative_error(folded(images), model(images)) < 1e-12


@pytest.mark.parametrize("kind", [Noisy, Standardised])
def test_what_does_anything_else_is_left_alone(kind):
    layer = kind(4, 8, 3, padding=1).eval()
    assert take_apart(layer) is None and not layer.training


@pytest.mark.parametrize("side", range(7, 12))
@pytest.mark.parametrize("kernel, stride, dilation", [(3, 1, 1), (3, 2, 1), (2, 3, 1), (3, 2, 2), (1, 2, 1)])
def test_same_padding_gives_outputs_of_the_size_over_the_stride(side, kernel, stride, dilation):
    pad = SamePad2d((kernel, kernel), (stride, stride), (dilation, dilation))
    maps = F.conv2d(pad(torch.ones(1, 1, side, side)), torch.ones(1, 1, kernel, kernel), None, stride, 0, dilation)
    assert maps.shape[-2:] == (-(-side // stride),) * 2
