"""nn.Linear and nn.Conv1d are converted if asked for; convolutions that pad by themselves are split; others stay."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import LinearConv
from linearconv_convert import convert, fold
from linearconv_convert.adapters import Conv2dAdapter, SamePad2d, split
from tests.helpers.layers import relative_error
from tests.helpers.networks import disturb
from training.counting import count_parameters

SEQUENCE = torch.randn(2, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """A Conv1d of every setting, Linears of tokens, of images and of nothing but channels, one of them tied."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(16, 32, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular")
        self.tokens, self.thin = nn.Linear(32, 64), nn.Linear(64, 1)
        self.embedding, self.tied = nn.Embedding(64, 64), nn.Linear(64, 64, bias=False)
        self.tied.weight = self.embedding.weight

    def forward(self, x):
        x = self.tied(self.tokens(self.conv(x).transpose(1, 2)).relu())  # (N, L, 64)
        return self.thin(x[0, 0]) + self.thin(x[:, 0]).sum() + self.thin(x[:, :, None]).sum()


@torch.no_grad()
@pytest.mark.parametrize("inplace", [False, True])
def test_linear_layers_are_converted_with_their_weights(inplace):
    torch.manual_seed(0)
    model = Mixed().double().eval()
    before = copy.deepcopy(model)
    every = {"alpha": 1.0, "grow": True, "kinds": ("conv1d", "linear"), "calibration": SEQUENCE}
    same = convert(model, "rank", **every, inplace=inplace)
    assert (same is model) is inplace
    assert all(type(adapter.conv) is LinearConv for adapter in (same.conv, same.tokens, same.thin))
    torch.testing.assert_close(same(SEQUENCE), before(SEQUENCE))
    small, report = convert(before, "rank", alpha=0.25, kinds=("linear",), calibration=SEQUENCE, return_report=True)
    assert isinstance(small.tokens, Conv2dAdapter) and type(small.thin) is nn.Linear and type(small.conv) is nn.Conv1d
    assert type(before.tokens) is nn.Linear and count_parameters(small) < count_parameters(before)
    (row,) = report.converted
    assert small.tokens.in_features == 32 and same.conv.kernel_size == (3,)
    assert next(row for row in report.layers if row.name == "tied").reason == "shares a parameter with another layer"
    assert row.name == "tokens" and row.output_error > 0 and row.macs_before == 10 * 32 * 64
    torch.testing.assert_close(fold(small)(SEQUENCE), small(SEQUENCE))
    assert fold(small).tokens.weight.shape == (64, 32)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (0, 3, 64)])
def test_a_converted_linear_takes_zero_rows(shape):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
    for compute in ("auto", "features"):
        small = convert(model, "rank", kinds=("linear",), compute=compute)
        for each in (small, fold(small)):
            assert each(torch.zeros(shape)).shape == model(torch.zeros(shape)).shape


def test_a_budget_takes_all_kinds():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 512), nn.Linear(512, 9)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), *head)
    small, report = convert(model, "rank", budget=0.6, kinds=("conv2d", "linear"), return_report=True)
    assert report.parameters_after <= 0.6 * report.parameters_before and isinstance(small[4], Conv2dAdapter)


class Static(nn.Conv2d):
    """Padding of its own, as Conv2dStaticSamePadding."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Wrapped(nn.Conv2d):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return x if x.numel() == 0 else super().forward(x)


class Noisy(nn.Conv2d):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x) if self.training else x)


def test_a_layer_with_another_output_in_training_is_left_alone():
    layer = Noisy(4, 8, 3, padding=1).eval()
    assert split(layer) is None and not layer.training


@pytest.mark.parametrize("kind", ["timm", "static", "wrapped"])
@pytest.mark.parametrize("settings", [{"stride": 2, "bias": False}, {"dilation": 2, "groups": 2}])
def test_layers_that_pad_are_converted_with_equal_outputs(kind, settings):
    torch.manual_seed(0)
    if kind == "timm":
        build, pad, padding = pytest.importorskip("timm.layers").Conv2dSame, SamePad2d, 0
    else:
        build, pad, padding = {"static": (Static, nn.ZeroPad2d, 0), "wrapped": (Wrapped, None, 1)}[kind]
    layer = build(4, 8, (3, 5), padding=padding, **settings).double().eval()
    images = torch.randn(2, 4, 19, 22, dtype=torch.float64)
    wrap, conv = split(layer)
    whole = wrap(conv)
    assert type(whole) is nn.Conv2d if pad is None else type(whole[0]) is pad
    assert conv.weight is layer.weight and not hasattr(layer, "calls")
    model = disturb(nn.Sequential(layer, nn.BatchNorm2d(8))).double().eval()
    same_model = convert(model, "rank", alpha=1.0, grow=True)
    assert any(isinstance(module, LinearConv) for module in same_model.modules())
    assert relative_error(same_model(images), model(images)) < 1e-12
    for folded in (fold(model, batch_norm=True), fold(same_model, batch_norm=True)):
        assert type(folded[1]) is nn.Identity and relative_error(folded(images), model(images)) < 1e-12
