"""LinearConv back to plain convolutions, and BatchNorm into the convolution before it."""

import warnings

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert, fold
from models.vgg_xcnn import VGG11
from tests.helpers.layers import VARIANTS, explicit_filters, prune_half, relative_error
from tests.helpers.networks import disturb, tiny

IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def kinds(model):
    return {name: type(module) for name, module in model.named_modules() if not list(module.children())}


@pytest.mark.parametrize("conv", VARIANTS.values(), ids=VARIANTS)
def test_batch_norm_is_folded_into_every_variant(conv):
    torch.manual_seed(0)
    layers = [prune_half(conv(3, 8, 3, bias=False)), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12, 3, groups=1)]
    model = disturb(nn.Sequential(*layers, nn.BatchNorm2d(12))).double().eval()
    folded = fold(model, batch_norm=True)
    assert [type(layer) for layer in folded][1::3] == [nn.Identity, nn.Identity]
    assert type(folded[0]) is type(folded[3]) is nn.Conv2d
    assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


def test_only_a_batch_norm_that_alone_takes_the_output_is_folded():
    model = tiny().double()
    folded = kinds(fold(model, batch_norm=True))
    assert folded["norm1"] is folded["block.1"] is folded["norm3"] is nn.Identity
    assert folded["norm2"] is nn.BatchNorm2d  # its input is used again in the shortcut
    assert relative_error(fold(model, batch_norm=True)(IMAGES), model(IMAGES)) < 1e-10


def test_folding_leaves_the_model_alone_unless_in_place():
    model = convert(tiny(), "rank")
    before = kinds(model)
    plain = fold(model, batch_norm=True)
    assert kinds(model) == before and not any(isinstance(layer, LinearConv) for layer in plain.modules())
    assert fold(model, inplace=True) is model
    assert not any(isinstance(layer, LinearConv) for layer in model.modules())


def test_hooks_on_the_pair_keep_it_apart():
    model = tiny()
    model.stem.register_forward_hook(lambda *arguments: None)
    assert kinds(fold(model, batch_norm=True))["norm1"] is nn.BatchNorm2d


def test_a_batch_norm_used_twice_stays():
    norm = nn.BatchNorm2d(8)
    model = disturb(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 8, 3), norm)).double().eval()
    assert relative_error(fold(model, batch_norm=True)(IMAGES), model(IMAGES)) < 1e-10


def test_a_convolution_that_is_used_elsewhere_unseen_stays():
    class Again(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(x[:, :3])  # holds no BatchNorm, so that nobody looks inside

    conv = nn.Conv2d(3, 8, 3)
    model = disturb(nn.Sequential(conv, nn.BatchNorm2d(8), Again(conv))).double().eval()
    folded = fold(model, batch_norm=True)
    assert type(folded[1]) is nn.BatchNorm2d
    assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


class Activated(nn.BatchNorm2d):
    """BatchNorm and activation, as timm's BatchNormAct2d."""

    def __init__(self, channels, scale=1):
        super().__init__(channels)
        self.act, self.scale = nn.ReLU(inplace=True), scale

    def forward(self, x):
        return self.act(super().forward(self.scale * x))


def test_an_activation_inside_of_a_batch_norm_stays_when_that_is_folded():
    model = (
        disturb(nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8), nn.Conv2d(8, 8, 3), Activated(8, 2))).double().eval()
    )
    folded = fold(model, batch_norm=True)
    assert kinds(folded)["1.0"] is nn.ReLU and type(folded[3]) is Activated
    assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("rest", [nn.Identity(), Untraceable()], ids=["traceable", "untraceable"])
def test_batch_norm_is_folded_across_containers_and_beside_what_cannot_be_traced(rest):
    inside = nn.Sequential(nn.Conv2d(3, 8, 3)) if isinstance(rest, nn.Identity) else nn.Conv2d(3, 8, 3)
    model = disturb(nn.Sequential(inside, nn.BatchNorm2d(8), rest)).double().eval()
    folded = fold(model, batch_norm=True)
    assert type(folded[1]) is nn.Identity
    assert relative_error(folded(IMAGES), model(IMAGES)) < 1e-10


def test_training_mode_and_control_flow_are_told():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x) if x.sum() > 0 else x

    with pytest.raises(ConversionError, match="eval mode"):
        fold(tiny().train(), batch_norm=True)
    with pytest.raises(ConversionError, match="cannot be traced by torch.fx"):
        fold(Choosing().eval(), batch_norm=True)
    fold(Choosing().eval())


def test_the_networks_of_the_paper_are_traceable():
    model = disturb(convert(VGG11(width=0.125), "rank")).eval()
    folded = fold(model, batch_norm=True)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    images = torch.randn(2, 3, 32, 32)
    assert relative_error(folded(images), model(images)) < 1e-4


@pytest.mark.parametrize("conv", VARIANTS.values(), ids=VARIANTS)
def test_switch_to_deploy_makes_a_plain_convolution_in_place(conv):
    torch.manual_seed(0)
    layer = prune_half(conv(6, 10, 3, dtype=torch.float64)).eval()
    maps = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    expected, filters = layer(maps).detach(), explicit_filters(layer)
    layer.switch_to_deploy()
    assert layer.alpha == 1 and sum(p.numel() for p in layer.parameters()) == 10 * 6 * 9 + 10
    torch.testing.assert_close(layer.conv_weights.detach(), filters)
    torch.testing.assert_close(layer(maps).detach(), expected)
    torch.testing.assert_close(layer.train()(maps), expected)
    assert "10" in repr(layer) and type(layer.fuse()) is nn.Conv2d


def test_timm_reparameterizes_converted_models():
    pytest.importorskip("timm")
    from timm.utils.model import reparameterize_model

    model = convert(tiny(), "rank")
    plain = reparameterize_model(model)
    assert not any(isinstance(layer, LinearConv) for layer in plain.modules())
    images = IMAGES.float()
    with warnings.catch_warnings(), torch.no_grad():
        assert relative_error(plain(images), model(images)) < 1e-4
