"""Layers that cannot be replaced are refused in one line and left unchanged; all references to a layer are replaced."""

import threading
import types
import warnings
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from linearconv import LinearConv
from linearconv_convert import ConversionError, ConversionWarning, convert, deploy, fold
from tests.helpers.layers import relative_error
from tests.helpers.networks import Several, disturb, images


def changed(change):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3))
    change(model[1])
    return model


def shared_weight():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[2].weight = model[1].weight
    return model


REFUSED = {
    "is lazy": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(16, 3)),
    "scripted or traced": lambda: torch.jit.script(nn.Sequential(nn.Conv2d(8, 16, 3))),
    "has no nn.Conv2d$": lambda: nn.Sequential(nn.ReLU()),
    r"no nn.Conv2d: pass kinds=\('conv1d', 'linear'\)": lambda: nn.Sequential(nn.Linear(3, 4), nn.Conv1d(3, 4, 3)),
    "wrapped in DataParallel": lambda: nn.DataParallel(nn.Conv2d(8, 16, 3)),
    "wrapped in OptimizedModule": lambda: torch.compile(nn.Sequential(nn.Conv2d(8, 16, 3))),
    "expected an nn.Module": lambda: "resnet18",
    "cannot be copied": lambda: changed(lambda conv: setattr(conv, "lock", threading.Lock())),
}
LEFT_ALONE = {  # with the first convolution converted
    "has other parameters": lambda: changed(nn.utils.weight_norm),
    "shares a parameter": shared_weight,
    "hooks on its parameters": lambda: changed(lambda conv: conv.weight.register_hook(lambda gradient: gradient)),
    "or its state_dict": lambda: changed(lambda conv: conv.register_state_dict_post_hook(lambda *_: None)),
    "not finite": lambda: changed(lambda conv: conv.weight.data.view(-1)[0].fill_(float("nan"))),
    "meta device": lambda: changed(lambda conv: conv.to("meta")),
    "complex filters": lambda: changed(lambda conv: conv.to(torch.complex64)),
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_converted_is_refused_in_one_line_and_unchanged(message):
    model = REFUSED[message]()
    modules = [type(module) for module in model.modules()] if isinstance(model, nn.Module) else None
    with pytest.raises(ConversionError, match=message) as caught:
        convert(model, "rank", inplace=True)
    assert "\n" not in str(caught.value)
    assert modules is None or [type(module) for module in model.modules()] == modules


@pytest.mark.parametrize("message", LEFT_ALONE)
@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_cannot_be_replaced_is_left_alone_with_the_reason(message):
    model = LEFT_ALONE[message]()
    small, report = convert(model, "rank", grow=True, return_report=True)
    assert type(small[0]) is LinearConv and type(small[1]) is type(model[1])
    assert message in report.layers[1].reason


def test_a_layer_in_several_places_is_replaced_in_all_of_them():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    small = convert(nn.Sequential(conv, nn.ReLU(), conv), "rank", alpha=0.7, grow=True)
    assert type(small[0]) is LinearConv and small[0] is small[2]
    assert relative_error(small(images()), small[0](small[0](images()).relu())) == 0


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


class Odd(nn.Module):
    """Uses its first layer in another way than by a call."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.last, self.use = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), use
        held = self.conv
        if use == "closure":
            self.op = lambda x: held(x)
        elif use == "weight":
            self.op = partial(F.conv2d, weight=held.weight, bias=held.bias)

    def forward(self, x):
        if self.use == "type":
            return self.last(self.conv(x) if isinstance(self.conv, nn.Conv2d) else F.pad(x, (0, 0, 0, 0, 0, 5)))
        return self.last(self.op(x))


@pytest.mark.parametrize("settings", [{}, {"inplace": True}, {"example_input": images()}])
def test_a_layer_that_a_function_holds_is_refused(settings):
    with pytest.raises(ConversionError, match="a copy of the model calls layer 'conv' of the model itself"):
        convert(Odd("closure"), "rank", **settings)


@pytest.mark.parametrize("use", ["weight", "type"])
@torch.no_grad()
def test_a_layer_whose_replacement_would_change_the_output_is_left_alone_with_the_reason(use):
    model = Odd(use).eval()
    same, report = convert(model, "rank", alpha=1.0, grow=True, return_report=True)
    assert type(same.conv) is nn.Conv2d and type(same.last) is LinearConv
    assert "is used in another way than by a call" in report.layers[0].reason
    assert relative_error(same(images()), model(images())) < 1e-6


def test_without_an_input_a_warning_says_that_nothing_is_verified():
    with pytest.warns(ConversionWarning, match="the result is not verified.*give example_input"):
        small = convert(Several(), "rank")
    inputs = images(), torch.ones(2)
    with pytest.warns(ConversionWarning, match="not verified: the outputs on example_input are empty or not finite"):
        fold(small, example_input=tuple(each[:0] for each in inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold(convert(Several(), "rank", example_input=inputs), example_input=inputs)


class Yolo(nn.Module):
    """Layers with attributes that the network reads, as YOLO's `f`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
        self.norm = nn.BatchNorm2d(8)
        for index, layer in enumerate(self.layers):
            layer.i, layer.f, layer.type = index, -1, "Conv"
        self.layers[0].weight.no_decay = True

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if layer.f == -1 and layer.type == "Conv" else None
        return self.norm(x) / self.norm.num_features


@torch.no_grad()
def test_new_layers_have_the_attributes_of_the_old_ones():
    model = disturb(Yolo()).eval()
    same = convert(model, "rank", alpha=1.0, grow=True)
    assert relative_error(same(images()), model(images())) < 1e-6
    assert model.layers[0].weight.no_decay and same.layers[0].conv_weights.no_decay
    small = convert(model, "rank", grow=True)
    for each in (fold(small), deploy(small)):
        assert each.layers[1].i == 1 and relative_error(each(images()), small(images())) < 1e-5


def patch(layer, name):
    original = getattr(type(layer), name)
    setattr(layer, name, types.MethodType(lambda self, *args: 2.0 * original(self, *args), layer))


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
@torch.no_grad()
def test_a_convolution_with_a_patched_method_is_left_alone_with_the_reason(method):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    patch(model[0], method)
    same, report = convert(model, "rank", alpha=1.0, grow=True, return_report=True)
    assert type(same[0]) is nn.Conv2d and "set on the instance" in report.layers[0].reason
    assert relative_error(same(images()), model(images())) < 1e-5


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_patched_layers_are_not_folded(index):
    model = disturb(nn.Sequential(LinearConv(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))).eval()
    patch(model[index], "forward")
    folded = fold(model, batch_norm=True)
    assert type(folded[1]) is nn.BatchNorm2d and type(folded[3]) is nn.Identity
    assert relative_error(folded(images()), model(images())) < 1e-5
