"""Deployed models have equal outputs, consist of torch modules alone, and compute each layer the cheaper way."""

import copy
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
import torch.nn as nn
from torch import fx

from linearconv import LinearConv
from linearconv_convert import ConversionError, ConversionWarning, convert, deploy, deploying, export
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from tests.helpers.layers import VARIANTS, prune_half, reference, relative_error
from tests.helpers.networks import Choosing, disturb, images, tiny

GEOMETRIES = {
    "no bias": dict(bias=False, stride=2, padding="valid"),
    "dilated": dict(padding="same", dilation=2),
    "reflect": dict(padding=(1, 2), padding_mode="reflect"),
    "grouped": dict(groups=2),
    "alpha 1": dict(alpha=1.0),
}


@pytest.fixture(params=["pair", "plain"])
def form(request, monkeypatch):
    """All layers take one form, where both are possible."""
    monkeypatch.setattr(deploying, "MAP_COST", {"pair": 0, "plain": 1e9}[request.param])
    return {"pair": fx.GraphModule, "plain": nn.Conv2d}[request.param]


@pytest.fixture
def pairs(monkeypatch):
    monkeypatch.setattr(deploying, "MAP_COST", 0)


def normalised(maps, norm):
    """The maps after a BatchNorm in eval mode, by its formula."""
    mean, var, weight, bias = (
        tensor.detach().double()[:, None, None]
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (maps - mean) / (var + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("conv", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_every_variant_and_geometry_has_equal_outputs(conv, geometry, form):
    torch.manual_seed(0)
    layer = prune_half(conv(6, 10, 3, **geometry))
    model = disturb(nn.Sequential(layer, nn.BatchNorm2d(10))).double()
    maps = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    alone, both = deploy(layer), deploy(model)
    expected = reference(layer, maps)
    assert relative_error(alone(maps), expected) < 1e-12
    assert relative_error(both(maps), normalised(expected, model[1])) < 1e-12
    assert relative_error(alone(maps[0]), expected[0]) < 1e-12  # without a batch dimension
    is_plain = geometry.get("groups") or geometry.get("alpha")
    assert isinstance(alone, nn.Conv2d if is_plain else form) and type(both[1]) is nn.Identity


def test_low_rank_coefficients_are_two_convolutions_where_that_takes_fewer_multiply_adds(pairs):
    for rank, shapes in ((7, [(7, 16), (16, 7)]), (8, [(16, 16)])):
        deployed = deploy(LinearConvLowRank(16, 32, 3, rank=rank))
        assert [conv.weight.shape[:2] for conv in deployed.secondary.children()] == shapes


def test_the_cheaper_form_is_chosen_independently_of_how_the_layer_computes():
    for layer in (LinearConv(64, 64, 3), LinearConv(512, 512, 1), LinearConv(64, 64, 3, compute="filters")):
        assert type(deploy(layer)) is not nn.Conv2d
    for layer in (LinearConv(3, 64, 3), LinearConv(64, 64, 1), LinearConv(3, 64, 3, compute="features")):
        assert type(deploy(layer)) is nn.Conv2d
    many = partial(LinearConvRankRatio, 256, 256, 1)  # only fewer coefficients make these worth combining
    assert type(deploy(many(rank=1.0))) is nn.Conv2d and type(deploy(many(rank=0.05))) is not nn.Conv2d


@pytest.mark.parametrize("factor", [0.0, 1e-9])
@torch.no_grad()
def test_a_batch_norm_that_nearly_drops_a_primary_channel_stays_apart(pairs, factor):
    torch.manual_seed(0)
    layers = LinearConv(4, 8, 3), nn.BatchNorm2d(8), LinearConv(8, 8, 3), nn.BatchNorm2d(8)
    model = disturb(nn.Sequential(*layers)).eval()
    model[1].weight[0] = factor
    deployed, maps = deploy(model), torch.randn(2, 4, 6, 6)
    assert isinstance(deployed[0], fx.GraphModule) and type(deployed[1]) is nn.BatchNorm2d
    assert type(deployed[3]) is nn.Identity  # the others are folded
    first = normalised(reference(model[0], maps), model[1])
    assert relative_error(deployed(maps), normalised(reference(model[2], first), model[3])) < 1e-6
    model[1].weight[0] = 0.5
    assert type(deploy(model)[1]) is nn.Identity


def every_kind():
    """A model of torch modules for (N, 3, 12, 13), and its conversion, which holds all modules of this package."""
    torch.manual_seed(0)
    same = pytest.importorskip("timm.layers").Conv2dSame
    maps = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), same(16, 24, 3, stride=2), nn.BatchNorm2d(24)
    volumes = nn.Unflatten(1, (1, 24)), nn.Conv3d(1, 1, 1), nn.Flatten(1, 2)
    rest = *volumes, nn.Flatten(2), nn.Conv1d(24, 24, 3, padding=1), nn.Linear(30, 20), nn.Flatten(), nn.Linear(480, 8)
    model = disturb(nn.Sequential(*maps, *rest)).eval()
    return convert(model, "rank", kinds=("conv2d", "conv1d", "linear"))


def test_deployed_models_are_copied_compiled_traced_exported_and_run_without_this_package(form, tmp_path):
    small, batch = every_kind(), torch.randn(2, 3, 12, 13)
    own = {type(module).__name__ for module in small.modules() if type(module).__module__.startswith("linearconv")}
    assert own == {"LinearConv", "SamePad2d", "Conv2dAdapter"}
    deployed = deploy(small, example_input=batch)
    assert all(type(module).__module__.startswith("torch.") for module in deployed.modules())
    expected = deployed(batch)
    assert relative_error(expected, small(batch)) < 1e-5
    if form is nn.Conv2d:
        return
    dimensions = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)}
    for each in (
        copy.deepcopy(deployed),
        torch.compile(deployed, backend="eager", fullgraph=True),
        fx.symbolic_trace(deployed),
        torch.export.export(deployed, (batch,), **dimensions).module(),
    ):
        torch.testing.assert_close(each(batch), expected)
    torch.save((deployed, batch, expected), tmp_path / "deployed.pt")
    lines = [
        "import sys",
        "sys.modules.update(dict.fromkeys(('linearconv', 'linearconv_convert', 'linearconv_lowrank')))",  # unimportable
        "import torch",
        "model, batch, expected = torch.load('deployed.pt', weights_only=False)",
        "torch.testing.assert_close(model(batch), expected)",
    ]
    subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], cwd=tmp_path, check=True)


def test_the_users_model_is_left_alone(pairs):
    model = convert(tiny(), "rank").train()
    before, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    deployed = deploy(model, example_input=images())
    assert [type(module) for module in model.modules()] == kinds
    assert all(module.training for module in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in deployed.modules())
    memory = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert memory.isdisjoint(tensor.data_ptr() for tensor in deployed.state_dict().values())


class Viewing(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0], -1)


def test_a_model_that_needs_contiguous_maps_is_deployed_without_channels_last(tmp_path):
    model = nn.Sequential(LinearConv(3, 8, 3), Viewing())
    with pytest.raises(ConversionError, match="does not run on example_input: view size is not compatible"):
        deploy(model, example_input=images())
    assert relative_error(deploy(model, channels_last=False)(images()), model(images())) < 1e-5
    assert export(model, tmp_path / "net.pt2", images()).error < 1e-5


def test_a_model_that_cannot_be_traced_keeps_its_batch_norm_and_a_warning_says_so(pairs):
    model = disturb(Choosing()).eval()
    with pytest.warns(ConversionWarning, match="no BatchNorm was folded: .* cannot be traced"):
        deployed = deploy(model, example_input=images())
    assert type(deployed.norm) is nn.BatchNorm2d and isinstance(deployed.conv, fx.GraphModule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deploy(convert(tiny(), "rank"))
