"""The registry of other methods: settings, networks and their counts."""

from argparse import Namespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines import BASELINES, Baseline, method_of
from linearconv_variants import Variant
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from models.squeezenet_xcnn import SqueezeNet
from models.vgg_xcnn import VGG11
from training import counting

IMAGE = (3, 32, 32)


@pytest.mark.parametrize(
    "type, parameters, flops",
    [
        ("octave", 9_233_802, 77_122_294),  # the paper: 9.23 M, 0.077 B
        ("basis", 1_994_506, 105_761_782),  # 1.99 M, 0.101 B
        ("ghost", 4_631_882, 77_894_646),
        ("svd", 4_914_826, 94_510_070),
    ],
)
def test_vgg11_has_the_known_counts_of_each_method(type, parameters, flops):
    model = Baseline(type).build(VGG11).eval()
    assert (counting.count_parameters(model), counting.flops_paper(model, IMAGE)) == (parameters, flops)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *IMAGE))
    assert counting.macs_inference(model, IMAGE) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "network, type", [(ResNet18, "basis"), (ResNet18, "svd"), (ResNeXt29_2x64d, "ghost"), (MobileNetV2, "svd")]
)
def test_networks_with_shortcuts_and_groups_are_built_by_the_layers(network, type):
    with torch.device("meta"):
        model, dense = Baseline(type).build(network, num_classes=7), network(num_classes=7)
    assert 0.1 < counting.count_parameters(model) / counting.count_parameters(dense) < 1
    assert model(torch.empty(2, *IMAGE, device="meta")).shape == (2, 7)


def test_a_command_line_gives_a_baseline_or_a_variant():
    given = {"alpha": 0.4, "rank": None, "sparsity": None}
    for type in BASELINES:
        baseline = method_of(Namespace(type=type, **given))
        assert baseline == Baseline(type, alpha=0.4) and baseline.label == type
    assert str(baseline).startswith("two convolutions") and str(baseline).endswith("share 0.4")
    assert method_of(Namespace(type="lowrank", **given | {"rank": 3.0})) == Variant("lowrank", 3, None, 0.4)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="rank has no meaning with type basis: it belongs to rank and lowrank"):
        method_of(Namespace(type="basis", rank=10, sparsity=None, alpha=0.5))
    with pytest.raises(ValueError, match="alpha must be in"):
        Baseline("basis", alpha=float("nan"))


def test_unsuitable_networks_are_refused():
    for network, settings in ((VGG11, {"width": 0.125}), (MobileNetV2, {})):
        with pytest.raises(ValueError, match=f"^the method replaces no convolution of this {network.__name__}: "):
            Baseline("basis").build(network, **settings)
    for network in (ResNet18, SqueezeNet):
        with pytest.raises(ValueError, match=rf"^octave needs a network of .*, not {network.__name__}$"):
            Baseline("octave").build(network, width=0.125)
    with pytest.raises(ValueError, match=r"^octave needs alpha in \(0, 1\), got 1$"):
        Baseline("octave", alpha=1).build(Base)
