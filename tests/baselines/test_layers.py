"""Filter basis, Ghost module and factorised convolution against F.conv2d, and convolutions that stay plain."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import baselines.basis
from baselines.basis import BasisConv, to_basis
from baselines.drop_in import drop_in
from baselines.factorised import FactorisedConv
from baselines.ghost import GhostConv, to_ghost
from linearconv import LinearConv

GEOMETRY = {"stride": 2, "padding": 2, "dilation": 2, "padding_mode": "circular"}
REPLACE = {"basis": to_basis, "ghost": to_ghost, "svd": FactorisedConv}


def convolve(layer, input):
    """The output of a convolution in float64, with explicit padding."""
    input = F.pad(input.double(), (2, 2, 2, 2), mode="circular") if layer.kernel_size == (3, 3) else input.double()
    bias = None if layer.bias is None else layer.bias.double()
    return F.conv2d(input, layer.weight.double(), bias, layer.stride, 0, layer.dilation, layer.groups)


@torch.no_grad()
def test_basis_is_a_loop_over_groups_of_channels(monkeypatch):
    monkeypatch.setattr(baselines.basis, "BASIS_SIZE", 4)
    monkeypatch.setattr(baselines.basis, "N_BASIS", 5)
    layer = BasisConv(nn.Conv2d(12, 7, 3, **GEOMETRY)).eval()
    nn.init.normal_(layer.norm.running_mean)
    nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    input = torch.randn(2, 12, 9, 9)
    maps = torch.cat([convolve(layer.basis, input[:, start : start + 4]) for start in (0, 4, 8)], 1)
    mean, deviation = layer.norm.running_mean, (layer.norm.running_var + layer.norm.eps).sqrt()
    maps = ((maps - mean[:, None, None]) / deviation[:, None, None]).clamp(min=0)
    torch.testing.assert_close(layer(input).double(), convolve(layer.combine, maps), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("filters, alpha, intrinsic", [(7, 0.5, 3), (8, 0.75, 6), (8, 0.2, 1)])
def test_ghosts_are_filters_of_the_intrinsic_maps_in_turn(filters, alpha, intrinsic):
    layer = GhostConv(nn.Conv2d(6, filters, 3, **GEOMETRY), alpha)
    input = torch.randn(2, 6, 9, 9)
    maps = convolve(layer.intrinsic, input)
    ghosts = []
    for index in range(filters - intrinsic):
        ghosts.append(F.conv2d(maps[:, [index % intrinsic]], layer.cheap.weight[[index]].double(), padding=1))
    assert maps.shape[1] == intrinsic
    torch.testing.assert_close(layer(input).double(), torch.cat([maps, *ghosts], 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_factorised_convolution_is_the_convolution_with_the_product_of_its_factors():
    layer = FactorisedConv(nn.Conv2d(6, 16, 3, **GEOMETRY))
    first, last = layer
    filters = torch.einsum("fr,rchw->fchw", last.weight[:, :, 0, 0].double(), first.weight.double())
    input = torch.randn(2, 6, 9, 9)
    padded = F.pad(input.double(), (2, 2, 2, 2), mode="circular")
    expected = F.conv2d(padded, filters, last.bias.double(), stride=2, dilation=2)
    torch.testing.assert_close(layer(input).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(3, 64), (512, 512), (5, 1)])
@pytest.mark.parametrize("kernel_size, alpha, bias", [(3, 0.25, True), (3, 0.8, False), (1, 1.0, True)])
def test_a_factorised_convolution_has_at_most_the_parameters_of_linearconv(channels, kernel_size, alpha, bias):
    def size(layer):
        return sum(parameter.numel() for parameter in layer.parameters())

    with torch.device("meta"):
        ours = size(LinearConv(*channels, kernel_size, bias=bias, alpha=alpha))
        plain = nn.Conv2d(*channels, kernel_size, bias=bias)
        pair = FactorisedConv(plain, alpha)
        made = drop_in(FactorisedConv, alpha, *channels, kernel_size, bias=bias)
    one_more = plain.weight[0].numel() + plain.out_channels
    assert size(pair) <= ours < size(pair) + one_more or pair[0].out_channels == 1
    assert size(made) <= ours + (pair[0].out_channels == 1)  # of rank 1 it has one weight more than LinearConv


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("basis", dict(in_channels=96, out_channels=256, kernel_size=3)),  # no groups of 128
        ("basis", dict(in_channels=128, out_channels=128, kernel_size=1)),  # saves nothing
        ("ghost", dict(in_channels=16, out_channels=1, kernel_size=3)),
        ("svd", dict(in_channels=3, out_channels=64, kernel_size=3)),
        *((name, dict(in_channels=256, out_channels=256, kernel_size=3, groups=2)) for name in REPLACE),
    ],
)
def test_a_convolution_stays_plain_if_a_method_is_impossible_or_saves_nothing(name, arguments):
    layer = drop_in(REPLACE[name], 0.5, **arguments)
    assert type(layer) is nn.Conv2d and str(layer) == str(nn.Conv2d(**arguments))
