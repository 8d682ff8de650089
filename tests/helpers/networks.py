"""Small networks, and those of torchvision and timm, for the tests of conversion, folding and export."""

import importlib
import warnings

import pytest
import torch
import torch.nn as nn

SMALL = ("torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small",
         "torchvision:mnasnet0_5", "torchvision:resnet18", "timm:resnet10t", "timm:mobilenetv3_small_050")  # fmt: skip
FAMILIES = ("torchvision:alexnet", "torchvision:vgg11_bn", "torchvision:resnet50", "torchvision:wide_resnet50_2",
            "torchvision:resnext50_32x4d", "torchvision:densenet121", "torchvision:googlenet",
            "torchvision:inception_v3", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large",
            "torchvision:mnasnet1_0", "torchvision:efficientnet_b0", "torchvision:efficientnet_v2_s",
            "torchvision:regnet_y_400mf", "torchvision:regnet_x_400mf", "torchvision:shufflenet_v2_x1_0",
            "torchvision:squeezenet1_0", "torchvision:convnext_tiny", "torchvision:vit_b_16", "timm:resnet26d",
            "timm:efficientnet_lite0", "timm:regnetx_002", "timm:convnext_atto", "timm:repvgg_a0")  # fmt: skip


def build(name):
    """A network with random weights in eval mode, its BatchNorm statistics and factors random too."""
    source, _, network = name.partition(":")
    library = pytest.importorskip(source)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source == "timm":
            model = library.create_model(network)
        else:
            model = importlib.import_module("torchvision.models").get_model(network, weights=None)
    return disturb(model).eval()


def disturb(model):
    """Give every BatchNorm2d statistics and factors that folding must not take for zeros and ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def image_side(name):
    return {"inception_v3": 299, "vit_b_16": 224, "alexnet": 224}.get(name.rpartition(":")[2], 96)


class Tiny(nn.Module):
    """Bias and none, groups, a shortcut that uses a convolution's output twice, BatchNorm with and without factors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True))
        self.twice = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 24, 3, groups=2, padding="same", padding_mode="reflect")
        self.norm3 = nn.BatchNorm2d(24, affine=False)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24)
        self.thin = nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.block(self.norm1(self.stem(x)).relu())
        x = self.twice(x)
        x = x + self.norm2(x)
        x = self.norm3(self.grouped(x))
        return self.fc(self.thin(self.depthwise(x)).mean((-2, -1)))


def tiny():
    torch.manual_seed(0)
    model = Tiny()
    model.norm3.running_mean.normal_(0, 0.1)
    for norm in (model.norm1, model.block[1], model.norm2):
        disturb(norm)
    return model.eval()
