"""Any network is converted with its weights carried over, and told in one line where that cannot be."""

import copy
import warnings

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parametrizations

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert, fold
from linearconv_convert.calibration import output_moments
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from linearconv_sparse import LinearConvSparse
from models.base_xcnn import Base
from models.vgg_xcnn import VGG11
from tests.helpers.layers import relative_error
from tests.helpers.networks import FAMILIES, SMALL, build, image_side, tiny
from training.counting import count_parameters, macs_inference

TYPES = {
    "full": (dict(type="rank"), LinearConv),
    "share": (dict(type="rank", rank=0.5), LinearConvRankRatio),
    "lowrank": (dict(type="lowrank", rank=3), LinearConvLowRank),
    "sparse": (dict(type="sparse", sparsity=0.5), LinearConvSparse),
}


def images(side=12, batch=2, **options):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(**options)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model, state, modules):
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def check_convert_and_fold(name, dtype, tolerance):
    model = build(name).to(dtype)
    batch = images(image_side(name), dtype=dtype)
    with torch.no_grad():
        same = convert(model, "rank", alpha=1.0, grow=True)
        assert not any(type(layer) is nn.Conv2d for layer in same.modules())
        assert relative_error(same(batch), model(batch)) <= (1e-12 if dtype == torch.float64 else 2e-6)
        small = convert(model, "rank")
        assert count_parameters(small) < count_parameters(model)
        plain = fold(small)
        assert not any(isinstance(layer, LinearConv) for layer in plain.modules())
        assert relative_error(plain(batch), small(batch)) <= tolerance
        for factorised in (False, True):
            folded = fold(small, batch_norm=True, factorised=factorised)
            assert relative_error(folded(batch), small(batch)) <= tolerance
            assert any(isinstance(layer, LinearConv) for layer in folded.modules()) is factorised


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_of_libraries_are_converted_and_folded_with_equal_outputs(name, dtype, tolerance):
    check_convert_and_fold(name, dtype, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_all_families_are_converted_and_folded_with_equal_outputs(name):
    check_convert_and_fold(name, torch.float32, 1e-4)
    check_convert_and_fold(name, torch.float64, 1e-10)


@pytest.mark.parametrize("setting, kind", TYPES.values(), ids=TYPES)
def test_every_variant_takes_the_place_of_the_layer(setting, kind):
    model = tiny().train().to(torch.float64)
    model.stem.weight.requires_grad_(False)
    model.block[0].eval()
    small, report = convert(model, **setting, return_report=True, grow=True)
    assert all(type(layer) is kind for layer in (small.stem, small.grouped, small.thin))
    for name in ("stem", "block.0", "twice", "grouped", "depthwise", "thin"):
        old, new = model.get_submodule(name), small.get_submodule(name)
        for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "padding_mode"):
            assert getattr(old, key) == getattr(new, key)
        assert new.conv_weights.dtype == torch.float64 and new.training == old.training
        assert (new.bias is None) == (old.bias is None)
    assert not any(p.requires_grad for name, p in small.stem.named_parameters() if name != "bias")
    assert small.stem.bias.requires_grad and small.twice.conv_weights.requires_grad
    weight = model.twice.weight.detach()
    error = ((small.twice.weight - weight).norm() / weight.norm()).item()
    assert next(row for row in report if row.name == "twice").filter_error == pytest.approx(error)
    assert small(images(dtype=torch.float64)).shape == (2, 5)


def test_the_conversion_of_a_conversion_is_the_same():
    once = convert(tiny().double(), "rank")
    again = convert(fold(once), "rank")
    for layer, other in zip(once.modules(), again.modules(), strict=True):
        if isinstance(layer, LinearConv):
            torch.testing.assert_close(layer.weight, other.weight, rtol=1e-6, atol=1e-9)


def test_layers_that_would_not_get_smaller_are_left_alone_and_said_so():
    small, report = convert(tiny(), "rank", return_report=True)
    reasons = {row.name: row.reason for row in report}
    assert type(small.depthwise) is nn.Conv2d and "would not get smaller (240 -> " in reasons["depthwise"]
    assert type(small.stem) is LinearConv and reasons["stem"] == ""
    assert report.parameters_after == count_parameters(small) < report.parameters_before == count_parameters(tiny())
    assert f"{len(report.converted)} of 6 convolutions converted" in str(report)


def test_the_report_counts_what_counting_counts():
    model = VGG11(width=0.25).eval()
    small, report = convert(model, "lowrank", rank=4, example_input=images(32), return_report=True)
    linear = model.fc.weight.numel()
    assert sum(row.macs_before for row in report) == macs_inference(model, (3, 32, 32)) - linear
    assert sum(row.macs_after for row in report) == macs_inference(small, (3, 32, 32)) - linear
    assert all(row.name in str(report) for row in report) and "%" in str(report)


@pytest.mark.parametrize(
    "skip, left",
    [
        ("stem", {"stem"}),
        (["stem", "thin"], {"stem", "thin"}),
        ("block", {"block.0"}),
        ("*t*", {"stem", "twice", "depthwise", "thin"}),
        (nn.Sequential, {"block.0"}),
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


def test_a_name_that_fits_nothing_is_an_error():
    with pytest.raises(ConversionError, match="skip: no module of the model is called 'conv9'"):
        convert(tiny(), "rank", skip="conv9")
    with pytest.raises(ConversionError, match="include takes names"):
        convert(tiny(), "rank", include=[3])


def test_the_model_is_left_alone_or_changed_in_place():
    model = tiny()
    state, modules = state_of(model), [type(module) for module in model.modules()]
    small = convert(model, "rank")
    assert_untouched(model, state, modules)
    assert small.fc.weight is not model.fc.weight
    fc = model.fc
    assert convert(model, "rank", inplace=True) is model
    assert type(model.stem) is LinearConv and model.fc is fc
    torch.testing.assert_close(model(images()), small(images()))


def test_hooks_go_over_and_their_handles_still_remove_them():
    model, calls = tiny(), []
    handle = model.twice.register_forward_hook(lambda layer, inputs, output: calls.append(type(layer)))
    model.twice.register_forward_pre_hook(lambda layer, inputs, kwargs: calls.append("before"), with_kwargs=True)
    convert(model, "rank", inplace=True)(images())
    assert calls == ["before", LinearConv]
    handle.remove()
    model(images())
    assert calls == ["before", LinearConv, "before"]


def test_scratch_is_the_initial_distribution():
    torch.manual_seed(0)
    layer = convert(nn.Sequential(nn.Conv2d(16, 64, 3)), "rank", init="scratch")[0]
    assert layer.linear_weights.abs().max() <= 0.1
    assert layer.linear_weights.detach().std() == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_memory_format_is_kept():
    model = tiny().to(memory_format=torch.channels_last)
    layer = convert(model, "rank").twice
    assert layer.conv_weights.is_contiguous(memory_format=torch.channels_last)
    assert not layer.conv_weights.is_contiguous()


def test_a_model_that_is_itself_a_convolution():
    conv = nn.Conv2d(8, 16, 3)
    layer, report = convert(conv, "rank", return_report=True)
    assert type(layer) is LinearConv and len(report) == 1
    assert type(fold(layer)) is nn.Conv2d
    with pytest.raises(ConversionError, match="inplace=False"):
        convert(conv, "rank", inplace=True)


def test_sparse_layers_keep_their_mask_through_training_and_state_dicts():
    conv = nn.Conv2d(8, 16, 3)
    layer = convert(conv, "sparse", sparsity=0.5)
    assert layer.pruned_fraction == 0.5 and layer.linear_weights[layer.mask == 0].eq(0).all()
    mask = layer.mask.clone()
    fresh = convert(conv, "sparse", sparsity=0.5, init="scratch")
    fresh.load_state_dict(layer.state_dict())
    for each in (layer, fresh):
        for _ in range(30):
            each(torch.randn(1, 8, 5, 5))
        assert torch.equal(each.mask, mask)


# ---- calibration --------------------------------------------------------------------------------------------------


def trained():
    """Base, thin, after some steps on images whose classes differ in colour and frequency."""
    torch.manual_seed(0)
    model = Base(width=0.5).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        batch, labels = batch_of(64)
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def batch_of(size, generator=None):
    labels = torch.randint(10, (size,), generator=generator)
    noise = torch.randn(size, 3, 32, 32, generator=generator)
    wave = torch.sin(torch.arange(32) * (labels[:, None] + 1) * 0.3)[:, None, None, :]
    return 0.5 * noise + wave * torch.tensor([1.0, 0.5, -0.5])[:, None, None], labels


def output_error(layer, original, inputs):
    """Root mean square of what the layer's outputs differ by, on inputs of its place in the original model."""
    return ((layer(inputs) - original(inputs)).square().mean() / original(inputs).square().mean()).sqrt().item()


@pytest.mark.parametrize("setting, kind", TYPES.values(), ids=TYPES)
def test_calibration_lowers_the_error_of_the_outputs_on_new_images(setting, kind):
    model = trained()
    seen, unseen = batch_of(128)[0], batch_of(128)[0]
    plain, report = convert(model, **setting, return_report=True, skip="feat.0")
    data_aware, weighed = convert(model, **setting, calibration=seen, return_report=True, skip="feat.0")
    with torch.no_grad():
        inputs = {}
        handles = [
            layer.register_forward_hook(lambda layer, given, _: inputs.__setitem__(layer, given[0]))
            for layer in model.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        expected = model(unseen)
        for handle in handles:
            handle.remove()
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and name != "feat.0.0":
                without = output_error(plain.get_submodule(name), layer, inputs[layer])
                with_data = output_error(data_aware.get_submodule(name), layer, inputs[layer])
                assert with_data < without
                assert next(row for row in weighed if row.name == name).output_error > 0
        assert relative_error(data_aware(unseen), expected) < relative_error(plain(unseen), expected)
    assert all(row.output_error is None for row in report)
    assert all(a.filter_error > b.filter_error for a, b in zip(weighed.converted, report.converted, strict=True))


def test_calibration_keeps_the_mean_of_the_outputs_by_the_bias():
    model = trained()
    batches = [batch_of(32) for _ in range(3)]
    small = convert(model, "lowrank", rank=2, calibration=batches, skip=["feat.0", "feat.1", "feat.2"])
    name = "feat.3.0"
    ours = output_moments(small, {name: small.get_submodule(name)}, batches)[name].mean
    theirs = output_moments(model, {name: model.get_submodule(name)}, batches)[name].mean
    bias_ours, bias_theirs = (net.get_submodule(name).bias.detach().double() for net in (small, model))
    torch.testing.assert_close(ours + bias_ours, theirs + bias_theirs, rtol=0, atol=1e-4)


def test_output_moments_are_those_of_numpy_and_leave_no_trace():
    model = tiny().train()
    state = state_of(model)
    batches = [images(), images(side=16)]
    with torch.no_grad():
        moments = output_moments(model, {"stem": model.stem}, batches)["stem"]
        rows = [model.stem(batch).movedim(1, -1).reshape(-1, 16) - model.stem.bias for batch in batches]
    rows = torch.cat(rows).double()
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(rows.T, correction=0))
    assert model.training and model.block[1].training and not model.stem._forward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no batch"):
        output_moments(model, {"stem": model.stem}, [])


# ---- what cannot be converted -------------------------------------------------------------------------------------


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
    "no nn.Conv2d$": lambda: nn.Sequential(nn.Linear(3, 4)),
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


def test_a_subclass_is_converted_only_if_it_adds_nothing():
    class Named(nn.Conv2d):
        pass

    class Scaled(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    small, report = convert(nn.Sequential(Named(8, 16, 3), Scaled(16, 16, 3)), "rank", return_report=True)
    assert [type(layer) for layer in small] == [LinearConv, Scaled]
    assert report[1].reason == "Scaled adds to nn.Conv2d"


@pytest.mark.parametrize(
    "setting, message",
    [
        (dict(type="full"), "type must be one of"),
        (dict(type="rank", rank=2), "share of the primary filters"),
        (dict(type="lowrank", rank=0.5), "integer of at least 1"),
        (dict(type="sparse", rank=3), "rank has no meaning"),
        (dict(type="rank", sparsity=0.5), "sparsity has no meaning"),
        (dict(type="sparse", sparsity=1), "sparsity must lie"),
        (dict(type="rank", alpha=0), "alpha must lie"),
        (dict(type="rank", init="random"), "init must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        convert(tiny(), **setting)


def test_converted_models_can_be_copied_saved_and_trained():
    small = convert(tiny(), "lowrank", rank=2).train()
    twin = convert(tiny(), "lowrank", rank=2, init="scratch")
    twin.load_state_dict(copy.deepcopy(small).state_dict())
    torch.testing.assert_close(twin.eval()(images()), small.eval()(images()))
    small.train()(images()).sum().backward()
    assert small.twice.column_weights.grad.abs().sum() > 0
