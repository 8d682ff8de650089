"""Layers that cannot be replaced are refused in one line and left unchanged; all references to a layer are replaced."""

import types
import warnings

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parametrizations

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert, fold
from tests.helpers.layers import relative_error
from tests.helpers.networks import disturb, images


def shared_layer():
    conv = nn.Conv2d(4, 4, 3)
    return nn.Sequential(conv, nn.ReLU(), conv)


def shared_weight():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[0].weight
    return model


def changed(change):
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    change(model[0])
    return model


def weight_normed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.utils.weight_norm(nn.Conv2d(8, 16, 3)))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Conv2d(8, 16, 3)))


REFUSED = {
    "is lazy": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(16, 3)),
    "is parametrized": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(8, 16, 3))),
    "computed by a hook": weight_normed,
    "scripted or traced": scripted,
    "one convolution is in several places": shared_layer,
    "one parameter is in several places .0.weight, 1.weight.": shared_weight,
    "weight of layer '0' has hooks": lambda: changed(lambda conv: conv.weight.register_hook(lambda gradient: gradient)),
    "hooks on its state_dict": lambda: changed(lambda conv: conv.register_state_dict_post_hook(lambda *_: None)),
    "not finite": lambda: changed(lambda conv: conv.weight.data.view(-1)[0].fill_(float("nan"))),
    "meta device": lambda: nn.Sequential(nn.Conv2d(8, 16, 3, device="meta")),
    "has no nn.Conv2d$": lambda: nn.Sequential(nn.ReLU()),
    "no nn.Conv2d: of its Linear, kinds= converts some": lambda: nn.Sequential(nn.Linear(3, 4)),
    "no nn.Conv2d: its 1 LinearConv layers": lambda: nn.Sequential(LinearConv(8, 16, 3)),
    "wrapped in DataParallel": lambda: nn.DataParallel(nn.Conv2d(8, 16, 3)),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv2d(8, 16, 3))),
    "expected an nn.Module": lambda: "resnet18",
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_model_that_cannot_be_converted_is_refused_in_one_line_and_unchanged(message):
    model = REFUSED[message]()
    modules = [type(module) for module in model.modules()] if isinstance(model, nn.Module) else None
    with pytest.raises(ConversionError, match=message) as caught:
        convert(model, "rank", inplace=True)
    assert "\n" not in str(caught.value)
    assert modules is None or [type(module) for module in model.modules()] == modules


@pytest.mark.parametrize("build_model", [shared_layer, weight_normed])
def test_a_layer_that_cannot_be_converted_can_be_skipped(build_model):
    model = nn.Sequential(build_model(), nn.Conv2d(16, 16, 3))
    skipped = [name for name, layer in model[0].named_modules(prefix="0") if isinstance(layer, nn.Conv2d)]
    small = convert(model, "rank", skip=skipped, inplace=True)  # torch cannot copy weight-normed layers
    assert type(small[1]) is LinearConv


class Hidden(nn.Module):
    """Runs its layers through references outside of the module tree."""

    def __init__(self, kind):
        super().__init__()
        self.conv1, self.conv2, self.kind = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), kind
        self.convs = [self.conv1, (self.conv2,)]
        self.by_name = {"first": self.conv1, "second": [self.conv2]}
        self.ops = [self.conv1.forward, self.conv2.forward]

    def forward(self, x):
        if self.kind == "list":
            return self.convs[1][0](self.convs[0](x))
        if self.kind == "dict":
            return self.by_name["second"][0](self.by_name["first"](x))
        return self.ops[1](self.ops[0](x))


@pytest.mark.parametrize("kind", ["list", "dict", "bound method"])
@torch.no_grad()
def test_references_outside_of_the_module_tree_are_replaced(kind):
    model = Hidden(kind).eval()
    small = convert(model, "rank", alpha=0.25)
    assert relative_error(small(images()), model(images())) > 0.01  # the old layers are not used any more
    expected = small.conv2(small.conv1(images()))
    assert torch.equal(small(images()), expected)
    assert torch.equal(model(images()), model.conv2(model.conv1(images()))) and type(model.convs[0]) is nn.Conv2d
    assert relative_error(fold(small)(images()), expected) < 1e-5


def patch(layer, name, factor):
    original = getattr(type(layer), name)
    setattr(layer, name, types.MethodType(lambda self, *args: factor * original(self, *args), layer))


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
@torch.no_grad()
def test_a_convolution_with_a_patched_method_is_left_alone_with_the_reason(method):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    patch(model[0], method, 2.0)
    same, report = convert(model, "rank", alpha=1.0, grow=True, return_report=True)
    assert type(same[0]) is nn.Conv2d and "set on the instance" in report.layers[0].reason
    assert relative_error(same(images()), model(images())) < 1e-5


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_patched_layers_are_not_folded(index):
    model = disturb(nn.Sequential(LinearConv(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))).eval()
    patch(model[index], "forward", 2.0)
    folded = fold(model, batch_norm=True)
    assert type(folded[1]) is nn.BatchNorm2d and type(folded[3]) is nn.Identity
    assert relative_error(folded(images()), model(images())) < 1e-5
