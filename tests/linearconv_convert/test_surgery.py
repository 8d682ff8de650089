"""What cannot be replaced is told in one line, and left untouched."""

import warnings

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parametrizations

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert


def shared_layer():
    conv = nn.Conv2d(4, 4, 3)
    return nn.Sequential(conv, nn.ReLU(), conv)


def shared_block():
    block = nn.Sequential(nn.Conv2d(4, 4, 3))
    return nn.Sequential(block, block)


def shared_weight():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[0].weight
    return model


def hooked_weight():
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    model[0].weight.register_hook(lambda gradient: gradient)
    return model


def hooked_state():
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    model[0].register_state_dict_post_hook(lambda *arguments: None)
    return model


def not_finite():
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    model[0].weight.data[0, 0, 0, 0] = float("nan")
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
    "one convolution stands in several places": shared_layer,
    "stands in several places .0.0, 1.0.": shared_block,
    "one parameter stands in several places .0.weight, 1.weight.": shared_weight,
    "weight of layer '0' has hooks": hooked_weight,
    "hooks on its state_dict": hooked_state,
    "not finite": not_finite,
    "meta device": lambda: nn.Sequential(nn.Conv2d(8, 16, 3, device="meta")),
    "no nn.Conv2d$": lambda: nn.Sequential(nn.ReLU()),
    "no nn.Conv2d: of its Linear, kinds= converts some": lambda: nn.Sequential(nn.Linear(3, 4)),
    "no nn.Conv2d: its 1 LinearConv layers": lambda: nn.Sequential(LinearConv(8, 16, 3)),
    "wrapped in DataParallel": lambda: nn.DataParallel(nn.Conv2d(8, 16, 3)),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv2d(8, 16, 3))),
    "expected an nn.Module": lambda: "resnet18",
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_converted_gets_one_line_and_is_left_untouched(message, inplace):
    model = REFUSED[message]()
    modules = [type(module) for module in model.modules()] if isinstance(model, nn.Module) else None
    with pytest.raises(ConversionError, match=message) as caught:
        convert(model, "rank", inplace=inplace)
    assert "\n" not in str(caught.value)
    if modules:
        assert [type(module) for module in model.modules()] == modules


@pytest.mark.parametrize("build_model", [shared_layer, weight_normed, not_finite])
def test_a_layer_that_cannot_be_converted_can_be_skipped(build_model):
    model = nn.Sequential(build_model(), nn.Conv2d(16, 16, 3))
    skipped = [name for name, layer in model[0].named_modules(prefix="0") if isinstance(layer, nn.Conv2d)]
    small = convert(model, "rank", skip=skipped, inplace=True)  # torch cannot copy weight-normed layers
    assert type(small[1]) is LinearConv
