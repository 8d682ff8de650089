"""LinearConv back to plain convolutions, and BatchNorm into the convolution before it."""

import pytest
import torch
import torch.nn as nn
from torchvision.ops import FrozenBatchNorm2d

from linearconv import LinearConv
from linearconv_convert import ConversionError, ConversionWarning, convert, deploy, fold
from tests.helpers.layers import VARIANTS, explicit_filters, prune_half, relative_error
from tests.helpers.networks import Choosing, Reused, disturb, tiny

IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def kinds(model):
    return {name: type(module) for name, module in model.named_modules() if not list(module.children())}


def test_only_a_batch_norm_that_alone_takes_the_output_and_has_no_hooks_is_folded():
    model = tiny().double()
    model.norm3.register_forward_hook(lambda *arguments: None)
    folded = fold(model, batch_norm=True)
    found = kinds(folded)
    assert found["norm1"] is found["block.1"] is nn.Identity
    assert found["norm2"] is found["norm3"] is nn.BatchNorm2d  # the input of norm2 is used again in the shortcut
    assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


def test_folding_leaves_the_model_unchanged_unless_in_place():
    model = convert(tiny(), "rank")
    before = kinds(model)
    plain = fold(model, batch_norm=True)
    assert kinds(model) == before and not any(isinstance(layer, LinearConv) for layer in plain.modules())
    assert fold(model, inplace=True) is model
    assert not any(isinstance(layer, LinearConv) for layer in model.modules())


class Storing(nn.Module):
    """Keeps its features and counts its calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.calls, self.kept = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), 0, []

    def forward(self, x):
        self.calls += 1
        self.features = self.conv(x)
        self.kept.append(self.features)
        return self.norm(self.kept[0]) + self.calls


@pytest.mark.parametrize("inplace", [False, True])
def test_tracing_leaves_no_trace_in_a_model_that_stores_tensors_on_itself(inplace):
    model = disturb(Storing()).double().eval()
    small = convert(model, "rank", calibration=IMAGES)
    folded = fold(model, batch_norm=True, inplace=inplace)
    for each in (model, small, folded):
        assert each.calls == 0 and each.kept == [] and not hasattr(each, "features")
    assert type(folded(IMAGES)) is torch.Tensor


class Again(nn.Module):
    """Uses a convolution of its parent; the tracer does not look inside, as there is no BatchNorm."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x[:, :3])


class Activated(nn.BatchNorm2d):
    """BatchNorm and activation, as timm's BatchNormAct2d."""

    def __init__(self, channels, scale=1):
        super().__init__(channels)
        self.act, self.scale = nn.ReLU(inplace=True), scale

    def forward(self, x):
        return self.act(super().forward(self.scale * x))


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def disturbed(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


CONV, NORM = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
SECOND = {  # the layers after a convolution, and the type of the first of them after folding
    "beside a module that cannot be traced": (lambda: [NORM, Untraceable()], nn.Identity),
    "FrozenBatchNorm2d": (lambda: [disturbed(FrozenBatchNorm2d(8))], nn.Identity),
    "SyncBatchNorm": (lambda: [disturbed(nn.SyncBatchNorm(8))], nn.Identity),
    "with an activation": (lambda: [Activated(8)], nn.Sequential),
    "with anything else": (lambda: [Activated(8, 2), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)], Activated),
    "norm used twice": (lambda: [NORM, nn.Conv2d(8, 8, 3), NORM], nn.BatchNorm2d),
    "convolution used twice": (lambda: [NORM, Again(CONV)], nn.BatchNorm2d),
}


@pytest.mark.parametrize("kind", SECOND)
@pytest.mark.filterwarnings("ignore::linearconv_convert.ConversionWarning")
def test_a_batch_norm_is_folded_if_it_is_affine_and_used_once(kind):
    build, expected = SECOND[kind]
    model = disturb(nn.Sequential(CONV, *build())).double().eval()
    for folded in (fold(model, batch_norm=True), deploy(model)):
        assert type(folded[1]) is expected
        assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


@pytest.mark.parametrize("conv", [nn.Conv2d, LinearConv])
@pytest.mark.parametrize("use", ["", "transposed", "norm"])
def test_a_weight_that_is_used_elsewhere_is_not_folded_and_defaults_are_as_in_a_call(conv, use):
    model = disturb(Reused(conv(3, 8, 3), use)).double().eval()
    for folded in (fold(model, batch_norm=True, example_input=IMAGES), deploy(model, example_input=IMAGES)):
        assert type(folded.norm) is (nn.BatchNorm2d if use else nn.Identity)
        assert type(folded.last[1]) is nn.Identity
        assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


class Concealed(nn.Module):
    """Reads a tensor that folding removes: the graph of torch.fx does not show a buffer of BatchNorm."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.norm, self.read = LinearConv(3, 8, 3), nn.BatchNorm2d(8), read

    def forward(self, x):
        read = self.norm.running_mean if self.read == "buffer" else self.conv.linear_weights
        return self.norm(self.conv(x)) + read.sum()


def test_a_folded_model_with_other_outputs_is_refused_or_deployed_with_its_batch_norm():
    model = disturb(Concealed("factor")).double().eval()
    for form in (fold, deploy):
        with pytest.raises(ConversionError, match="is not equal to the model: the model does not run on random images"):
            form(model)
    model = disturb(Concealed("buffer")).double().eval()
    with pytest.raises(ConversionError, match="the folded model is not equal to the model"):
        fold(model, batch_norm=True)
    with pytest.warns(ConversionWarning, match="no BatchNorm was folded: the model does not run on random images"):
        deployed = deploy(model)
    assert type(deployed.norm) is nn.BatchNorm2d and relative_error(deployed(IMAGES), model(IMAGES)) < 1e-10


def test_training_mode_and_control_flow_are_refused():
    with pytest.raises(ConversionError, match="eval mode"):
        fold(tiny().train(), batch_norm=True)
    with pytest.raises(ConversionError, match="cannot be traced by torch.fx"):
        fold(Choosing().eval(), batch_norm=True)


@pytest.mark.parametrize("conv", VARIANTS.values(), ids=VARIANTS)
def test_switch_to_deploy_gives_a_plain_convolution_in_place(conv):
    torch.manual_seed(0)
    layer = prune_half(conv(6, 10, 3, dtype=torch.float64)).eval()
    maps = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    expected, filters = layer(maps).detach(), explicit_filters(layer)
    layer.switch_to_deploy()
    assert layer.alpha == 1 and sum(p.numel() for p in layer.parameters()) == 10 * 6 * 9 + 10
    torch.testing.assert_close(layer.conv_weights.detach(), filters)
    torch.testing.assert_close(layer.train()(maps), expected)
    assert "10" in repr(layer) and type(layer.fuse()) is nn.Conv2d


@torch.no_grad()
def test_timm_reparameterizes_converted_models():
    reparameterize_model = pytest.importorskip("timm.utils.model").reparameterize_model
    model = convert(tiny(), "rank")
    plain = reparameterize_model(model)
    assert not any(isinstance(layer, LinearConv) for layer in plain.modules())
    assert relative_error(plain(IMAGES.float()), model(IMAGES.float())) < 1e-4
