"""The three counts: Table 1's convention, today's thop, and what torch's own FLOP counter sees at inference."""

import copy
from functools import partial

import pytest
import thop
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse
from models.allconv_xcnn import AllConv
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from tests.helpers.layers import VARIANTS
from training import counting

IMAGE = (3, 32, 32)


@pytest.mark.parametrize("network", (Base, AllConv, MobileNetV2), ids=lambda network: network.__name__)
@pytest.mark.parametrize("conv", (nn.Conv2d, *VARIANTS.values()), ids=("dense", *VARIANTS))
@pytest.mark.parametrize("compute", ("filters", "features", "auto"))
def test_inference_macs_are_those_of_the_layers_without_building_filters(network, conv, compute):
    model = network(conv=conv if conv is nn.Conv2d else partial(conv, compute=compute), width=0.5)
    assert counting.macs_inference(model, IMAGE) == _macs_of_layers(model, IMAGE)


def _macs_of_layers(model, shape):
    """The sum over convolutions and linear layers: P K + |A| or F K for each output position."""
    macs = []

    def add(layer, _, output):
        if isinstance(layer, LinearConv) and layer.combines_maps:
            per_position = layer.conv_weights.numel() + layer.coefficients
        else:
            per_position = layer.weight.numel()
        macs.append(output.numel() // len(layer.weight) * per_position)

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, LinearConv)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        model.eval()(torch.randn(1, *shape))
    return sum(macs)


@pytest.mark.parametrize("conv", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("geometry", (dict(compute="filters"), dict(compute="features"), dict(groups=2)), ids=str)
def test_thop_flops_of_a_layer_are_half_of_what_torch_counts_in_training(conv, geometry):
    layer = conv(4, 8, 3, bias=False, **geometry)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 4, 9, 9))
    assert counting.flops(layer, (4, 9, 9)) == counter.get_total_flops() // 2


def test_flops_of_a_dense_network_are_what_thop_reports():
    model = Base()
    expected, _ = thop.profile(copy.deepcopy(model), (torch.zeros(1, *IMAGE),), verbose=False)
    assert counting.flops(model, IMAGE) == expected


def test_the_papers_convention_by_hand():
    layers = LinearConv(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(6, 5, 1)
    model = nn.Sequential(*layers)
    conv = 6 * 8 * 8 * (9 + 1) * 4 // 2 + (2 * 3 - 1) * 3 * 4 * 9
    others = 4 * 6 * 64 + 6 * 64 + 2 * 6 * 16 + 5 * 16 * (1 + 1) * 6
    assert counting.flops_paper(model, (4, 10, 10)) == conv + others
    lowrank = LinearConvLowRank(4, 6, 3, rank=2, bias=False)
    generation = (2 * 3 - 1) * 2 * 36 + (2 * 2 - 1) * 3 * 36
    assert counting.flops_paper(lowrank, (4, 10, 10)) == 6 * 64 * 9 * 4 + generation


def test_subclasses_count_as_their_class_does():
    class MyConv(LinearConv):
        pass

    assert counting.count(MyConv(4, 8, 3), (4, 9, 9)) == counting.count(LinearConv(4, 8, 3), (4, 9, 9))


def test_pruned_coefficients_are_not_nonzero_parameters():
    model = nn.Sequential(LinearConvSparse(3, 8, 3), LinearConvSparse(8, 8, 3))
    total = counting.count_parameters(model)
    assert counting.count_nonzero_parameters(model) == total
    model[0].mask[:2] = 0
    assert counting.count_nonzero_parameters(model) == total - 8
    assert counting.count_parameters(model) == total


@pytest.mark.parametrize("training", (True, False))
def test_counting_leaves_no_trace(training):
    model = Base(conv=LinearConvSparse).train(training)
    model.feat[0].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    attributes = [set(vars(module)) for module in model.modules()]
    counting.count(model, IMAGE)
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks for module in model.modules())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
