"""The networks have the published sizes, names and shapes, and build their convolutions with `conv`."""

import importlib
import inspect
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from models.allconv_xcnn import AllConv
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from models.resnet_xcnn import ResNet18, ResNet50, ResNet101, ResNet152
from models.resnext_xcnn import ResNeXt29_2x64d, ResNeXt29_4x64d, ResNeXt29_8x64d, ResNeXt29_32x4d
from models.squeezenet_xcnn import SqueezeNet
from models.vgg_xcnn import VGG11

PAPER_NETWORKS = [Base, VGG11, AllConv, ResNet18, ResNeXt29_2x64d, MobileNetV2, SqueezeNet]
THIN = 0.125  # a width at which a forward pass takes milliseconds


def count(network, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in network(**options).parameters())


@pytest.mark.parametrize("network", PAPER_NETWORKS)
def test_the_docstring_states_the_numbers_of_parameters(network):
    doc = inspect.getmodule(network).__doc__
    rows = re.findall(r"^    (dense|rank 1|lowrank 10) +([\d,]+) ", doc, re.MULTILINE)
    assert {name: int(number.replace(",", "")) for name, number in rows} == {
        "dense": count(network),
        "rank 1": count(network, conv=LinearConv),
        "lowrank 10": count(network, conv=partial(LinearConvLowRank, rank=10)),
    }
    assert 0.24 < count(network, width=0.5) / count(network) < 0.27


@pytest.mark.parametrize(
    "network, parameters, multiply_adds",  # of all convolutions and linear layers, which fixes strides and paddings
    [
        (Base, 399_626, 15_050_752),
        (VGG11, 9_231_114, 152_769_536),
        (AllConv, 1_369_738, 281_174_016),
        (ResNet18, 11_173_962, 555_422_720),
        (ResNet50, 23_520_842, None),
        (ResNet101, 42_512_970, None),
        (ResNet152, 58_156_618, None),
        (ResNeXt29_2x64d, 9_128_778, 1_409_492_992),
        (ResNeXt29_4x64d, 27_104_586, None),
        (ResNeXt29_8x64d, 89_598_282, None),
        (ResNeXt29_32x4d, 4_774_218, None),
        (MobileNetV2, 2_296_922, 91_154_944),
        (SqueezeNet, 729_034, 52_543_488),
    ],
)
def test_the_dense_network_has_the_published_parameters_and_multiply_adds(network, parameters, multiply_adds):
    assert count(network) == parameters
    if multiply_adds:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network()(torch.empty(1, 3, 32, 32))
        assert counter.get_total_flops() == 2 * multiply_adds


@pytest.mark.parametrize("network", [*PAPER_NETWORKS, ResNet50, ResNeXt29_32x4d])
def test_logits_have_one_row_per_image_and_every_parameter_a_gradient(network):
    torch.manual_seed(0)
    net = network(conv=LinearConvLowRank, in_channels=1, num_classes=100, width=THIN)
    logits = net(torch.randn(4, 1, 64, 64))
    assert logits.shape == (4, 100)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if parameter.dim() > 1:  # a bias before BatchNorm has none
            assert parameter.grad.any(), name
    assert network(width=0.001)(torch.randn(2, 3, 32, 32)).shape == (2, 10)  # the smallest width


@pytest.mark.parametrize("network", [Base, VGG11])
def test_larger_images_are_averaged_to_the_grid_of_a_32x32_image(network):
    net = network(width=THIN).eval()
    small, large = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(small), net.fc(net.feat(small).flatten(1)), rtol=0, atol=0)
    torch.testing.assert_close(net(large), net.fc(F.avg_pool2d(net.feat(large), 2).flatten(1)))


BASIC = {"conv1", "bn1", "conv2", "bn2", "shortcut"}
BOTTLENECK = BASIC | {"conv3", "bn3"}
RESNET = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "linear"}


@pytest.mark.parametrize(
    "network, names, block, block_names",
    [
        (VGG11, {"feat", "fc"}, "feat.2.0", {"weight", "bias"}),
        (AllConv, {*(f"conv{i}" for i in range(1, 9)), "class_conv"}, "conv1", {"weight", "bias"}),
        (ResNet18, RESNET, "layer2.0", BASIC),
        (ResNeXt29_2x64d, RESNET - {"layer4"}, "layer2.0", BOTTLENECK),
        (MobileNetV2, {"conv1", "bn1", "layers", "conv2", "bn2", "linear"}, "layers.0", BOTTLENECK),
        (SqueezeNet, {"conv1", "fires", "class_conv"}, "fires.1", {"squeeze", "expand1x1", "expand3x3"}),
    ],
)
def test_the_state_dict_has_the_published_names(network, names, block, block_names):
    net = network(width=THIN)
    assert {key.split(".")[0] for key in net.state_dict()} == names
    assert {key.split(".")[0] for key in net.get_submodule(block).state_dict()} == block_names


def test_allconv_in_eval_mode_is_a_chain_of_convolutions_without_dropout():
    torch.manual_seed(0)
    net = AllConv(width=THIN).double().eval()
    x = images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    for name in [*(f"conv{i}" for i in range(1, 9)), "class_conv"]:
        weight, bias = net.state_dict()[f"{name}.weight"], net.state_dict()[f"{name}.bias"]
        stride = 2 if name in ("conv3", "conv6") else 1
        x = F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2).clamp(min=0)
    assert x.any()
    torch.testing.assert_close(net(images), x.sum((2, 3)) / 64)


@pytest.mark.parametrize(
    "script, lr, epochs, batch_size, milestones",
    [
        ("base", 1e-3, 250, 50, ()),
        ("vgg", 1e-3, 250, 50, ()),
        ("allconv", 1e-4, 350, 50, ()),
        ("resnet", 0.1, 250, 50, (75, 150, 200)),
        ("resnext", 1e-3, 250, 32, (75, 150, 200)),
        ("mobilenetv2", 1e-3, 250, 32, (75, 150, 200)),
        ("squeezenet", 3e-4, 250, 50, ()),  # this project's: none is published
        ("zoo", 0.1, 90, 256, (30, 60)),  # torchvision's
    ],
)
def test_the_recipe_is_the_published_one(script, lr, epochs, batch_size, milestones):
    recipe = importlib.import_module(f"models.{script}_xcnn").RECIPE
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.milestones) == (lr, epochs, batch_size, milestones)
