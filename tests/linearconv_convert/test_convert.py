"""convert: any network, with its weights carried over, and one line for what cannot be converted."""

import copy

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert, deploy, fold
from linearconv_convert.networks import load_network
from linearconv_sparse import schedule_pruning
from tests.helpers.layers import relative_error
from tests.helpers.networks import CONVERSIONS, disturb, images, tiny
from training.counting import count_parameters


def test_a_network_of_a_library_is_converted_and_folded_with_equal_outputs():
    model = disturb(load_network("torchvision:shufflenet_v2_x0_5")).double().eval()
    batch = images(64, dtype=torch.float64)
    with torch.no_grad():
        same = convert(model, "rank", alpha=1.0, grow=True)
        assert not any(type(layer) is nn.Conv2d for layer in same.modules())
        assert relative_error(same(batch), model(batch)) <= 1e-10
        small = convert(model, "rank")
        assert count_parameters(small) < count_parameters(model)
        for folded in (fold(small), fold(small, batch_norm=True), deploy(small)):
            assert relative_error(folded(batch), small(batch)) <= 1e-10
            assert not any(isinstance(layer, LinearConv) for layer in folded.modules())


@pytest.mark.parametrize("setting, kind", CONVERSIONS.values(), ids=CONVERSIONS)
def test_every_variant_replaces_the_layer(setting, kind):
    model = tiny().train().to(torch.float64, memory_format=torch.channels_last)
    model.stem.weight.requires_grad_(False)
    model.block[0].eval()
    small, report = convert(model, **setting, return_report=True, grow=True)
    assert all(type(layer) is kind for layer in (small.stem, small.grouped, small.thin))
    for name in ("stem", "block.0", "twice", "grouped", "depthwise", "thin"):
        old, new = model.get_submodule(name), small.get_submodule(name)
        for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "padding_mode"):
            assert getattr(old, key) == getattr(new, key)
        assert new.conv_weights.dtype == torch.float64 and new.training == old.training
        assert new.conv_weights.is_contiguous(memory_format=torch.channels_last)
        assert (new.bias is None) == (old.bias is None)
    assert not any(p.requires_grad for name, p in small.stem.named_parameters() if name != "bias")
    assert small.stem.bias.requires_grad and small.twice.conv_weights.requires_grad
    weight = model.twice.weight.detach()
    error = ((small.twice.weight - weight).norm() / weight.norm()).item()
    assert next(row for row in report.layers if row.name == "twice").filter_error == pytest.approx(error)
    assert small(images(dtype=torch.float64)).shape == (2, 5)


@pytest.mark.parametrize(
    "skip, left",
    [
        ("block", {"block.0"}),
        ("*t*", {"stem", "twice", "depthwise", "thin"}),
        (lambda name, layer: layer.in_channels == 24, {"grouped", "depthwise", "thin"}),
        ([nn.Sequential, "stem"], {"stem", "block.0"}),
    ],
)
def test_skip_and_include_take_names_patterns_types_and_predicates(skip, left):
    everything = {"stem", "block.0", "twice", "grouped", "depthwise", "thin"}

    def plain(**selection):
        small = convert(tiny(), "rank", grow=True, **selection)
        return {name for name, layer in small.named_modules() if isinstance(layer, nn.Conv2d)}

    assert plain(skip=skip) == left
    assert plain(include=skip) == everything - left


def test_a_subclass_is_converted_only_if_it_adds_nothing():
    class Named(nn.Conv2d):
        pass

    class Scaled(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    class Method(nn.Conv2d):
        def operations(self):
            return self.weight.numel()

    model = nn.Sequential(Named(8, 16, 3), Scaled(16, 16, 3), Method(16, 16, 3))
    model[0].register_buffer("total_ops", torch.zeros(1))  # as thop leaves them
    small, report = convert(model, "rank", return_report=True)
    assert [type(layer) for layer in small] == [LinearConv, Scaled, Method]
    assert [row.reason for row in report.layers[1:]] == ["Scaled adds to nn.Conv2d", "Method adds to nn.Conv2d"]


def test_the_model_is_changed_only_in_place():
    model = tiny()
    state, modules = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    small = convert(model, "rank")
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert small.fc.weight is not model.fc.weight
    fc = model.fc
    assert convert(model, "rank", inplace=True) is model
    assert type(model.stem) is LinearConv and model.fc is fc
    torch.testing.assert_close(model(images()), small(images()))


def test_hooks_move_and_their_handles_still_remove_them():
    model, calls = tiny(), []
    handle = model.twice.register_forward_hook(lambda layer, inputs, output: calls.append(type(layer)))
    model.twice.register_forward_pre_hook(lambda layer, inputs, kwargs: calls.append("before"), with_kwargs=True)
    convert(model, "rank", inplace=True)
    calls.clear()  # of copies of the model, which conversion runs
    model(images())
    assert calls == ["before", LinearConv]
    handle.remove()
    model(images())
    assert calls == ["before", LinearConv, "before"]


def test_a_model_that_is_itself_a_convolution():
    conv = nn.Conv2d(8, 16, 3)
    layer, report = convert(conv, "rank", return_report=True)
    assert type(layer) is LinearConv and len(report.layers) == 1
    assert type(fold(layer)) is nn.Conv2d
    with pytest.raises(ConversionError, match="inplace=False"):
        convert(conv, "rank", inplace=True)


def test_sparse_layers_keep_their_mask_through_state_dicts_and_training():
    conv = nn.Conv2d(8, 16, 3)
    layer = convert(conv, "sparse", sparsity=0.5)
    assert layer.pruned_fraction == 0.5 and layer.linear_weights[layer.mask == 0].eq(0).all()
    fresh = convert(conv, "sparse", sparsity=0.5, init="scratch")
    fresh.load_state_dict(layer.state_dict())
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    schedule_pruning(fresh, optimizer)
    for _ in range(30):
        optimizer.zero_grad()
        fresh(torch.randn(1, 8, 5, 5)).square().sum().backward()
        optimizer.step()
    assert torch.equal(fresh.mask, layer.mask) and fresh.steps == fresh.prune_end + 30
