"""Small networks for the tests of conversion, folding and export."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse

CONVERSIONS = {  # arguments of convert, and the layers that come of them
    "full": (dict(type="rank"), LinearConv),
    "rankratio": (dict(type="rank", rank=0.5), LinearConvRankRatio),
    "lowrank": (dict(type="lowrank", rank=3), LinearConvLowRank),
    "sparse": (dict(type="sparse", sparsity=0.5), LinearConvSparse),
}


def disturb(model):
    """Give every BatchNorm2d statistics and factors that folding must not take for zeros and ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def images(side=12, batch=2, dtype=None):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


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


class Choosing(nn.Module):
    """Control flow that depends on data, which cannot be traced."""

    def __init__(self, conv=LinearConv):
        super().__init__()
        self.conv, self.norm = conv(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) if float(x.sum()) > 0 else x


class Several(nn.Module):
    """Several inputs, one of them optional, and several outputs."""

    def __init__(self, conv=nn.Conv2d):
        super().__init__()
        self.conv = conv(3, 16, 3)

    def forward(self, image, shift, scale=None):
        y = self.conv(image) + shift[:, None, None, None]
        return {"maps": y if scale is None else y * scale, "means": (y.mean((1, 2, 3)), y.amax((1, 2, 3)))}


class Reused(nn.Module):
    """An argument with a default, and a weight that is used by itself in one of two ways."""

    def __init__(self, conv, use):
        super().__init__()
        self.conv, self.norm, self.use = conv, nn.BatchNorm2d(8), use
        self.last, self.scale = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), 1.5

    def forward(self, x, residual=None, scale=2.0, *, names=("a",)):
        x = self.norm(self.conv(x))
        if residual is not None:
            x = self.scale * x + residual
        if self.use == "transposed":
            x = x + F.conv_transpose2d(x, self.conv.weight).mean()
        elif self.use == "norm":
            x = x * self.conv.weight.norm()
        return self.last(x) * scale if scale > 1 else x  # torch.fx cannot trace it for an unknown scale
