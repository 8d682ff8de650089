"""Octave convolution: examples computed by hand, and suitable and unsuitable networks."""

import pytest
import torch
import torch.nn as nn

from baselines.octave import EachPart, OctaveConv, build_octave
from models.base_xcnn import Base
from models.vgg_xcnn import VGG11

THIN = 0.125


def pointwise(in_channels, out_channels, low_in, low_out, weights):
    """An octave 1x1 convolution whose paths each have one weight and bias: {path: (weight, bias)}."""
    layer = OctaveConv(nn.Conv2d(in_channels, out_channels, 1), low_in, low_out)
    for path, (weight, bias) in weights.items():
        nn.init.constant_(getattr(layer, path).weight, weight)
        nn.init.constant_(getattr(layer, path).bias, bias)
    return layer


def test_both_parts_have_the_values_computed_by_hand():
    weights = {"high_to_high": (2, 1), "high_to_low": (3, 0), "low_to_high": (10, 0), "low_to_low": (100, 7)}
    layer = pointwise(2, 2, 1, 1, weights)
    high, low = layer((torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), torch.tensor([[[[5.0]]]])))
    assert high.tolist() == [[[[2 + 1 + 50, 4 + 1 + 50], [6 + 1 + 50, 12 + 1 + 50]]]]
    assert low.tolist() == [[[[3 * (1 + 2 + 3 + 6) / 4 + 500 + 7]]]]
    # maps at half resolution are repeated, not interpolated
    layer = pointwise(2, 1, 1, 0, {"high_to_high": (0, 0), "low_to_high": (1, 0)})
    high = layer((torch.zeros(1, 1, 4, 4), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])))
    assert high[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@pytest.mark.parametrize("low_in, low_out", [(0, 4), (4, 0), (4, 4)])
def test_paths_have_the_geometry_and_the_parameters_of_the_plain_convolution(low_in, low_out):
    plain = nn.Conv2d(8, 12, 3, padding=2, dilation=2, padding_mode="reflect", bias=False)
    layer = OctaveConv(plain, low_in, low_out)
    paths = list(layer.children())
    assert len(paths) == (1 + bool(low_in)) * (1 + bool(low_out))
    assert sum(path.weight.numel() for path in paths) == plain.weight.numel()
    for path in paths:
        assert (path.padding, path.dilation, path.padding_mode, path.bias) == ((2, 2), (2, 2), "reflect", None)


def test_a_network_without_low_channels_equals_the_plain_one():
    plain = Base(width=THIN).eval()  # 4, 8, 16 and 32 channels
    octave = build_octave(Base, 0.01, width=THIN).eval()
    state = octave.state_dict()
    plain.load_state_dict({key.replace("high_to_high.", ""): state[key] for key in state})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(octave(images), plain(images), rtol=0, atol=0)


@pytest.mark.parametrize("network, alpha", [(Base, 0.25), (VGG11, 0.75)])
def test_half_resolution_is_used_between_the_first_and_the_last_convolution(network, alpha):
    model = build_octave(network, alpha, width=0.25)
    shapes = []
    for layer in model.modules():
        if isinstance(layer, OctaveConv):
            layer.register_forward_hook(lambda layer, input, output: shapes.append((input[0], output)))
    logits = model(torch.randn(2, 3, 36, 36))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert isinstance(shapes[0][0], torch.Tensor) and isinstance(shapes[-1][1], torch.Tensor)
    channels = [layer.out_channels for layer in network(width=0.25).modules() if isinstance(layer, nn.Conv2d)]
    for (_, (high, low)), expected in zip(shapes[:-1], channels[:-1], strict=True):
        assert low.shape[1] == int(alpha * expected) and high.shape[1] + low.shape[1] == expected
        assert (low.shape[2], low.shape[3]) == (high.shape[2] // 2, high.shape[3] // 2)
    assert not any(isinstance(layer, (EachPart, OctaveConv)) for layer in list(model.feat[-1])[-3:])
