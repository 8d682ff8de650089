"""60 networks of torchvision and timm are converted, folded and deployed with equal outputs, or refused in one line."""

import pytest
import torch

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert, deploy, fold
from linearconv_convert.inputs import tensors_of
from linearconv_convert.networks import load_network
from tests.helpers.layers import relative_error
from tests.helpers.networks import disturb

TORCHVISION = (
    "alexnet vgg11_bn resnet18 resnet50 wide_resnet50_2 resnext50_32x4d densenet121 googlenet inception_v3 "
    "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 efficientnet_b0 efficientnet_v2_s "
    "regnet_y_400mf regnet_x_400mf shufflenet_v2_x0_5 squeezenet1_1 convnext_tiny vit_b_16 swin_t maxvit_t "
    "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large ssdlite320_mobilenet_v3_large "
    "ssd300_vgg16 fasterrcnn_mobilenet_v3_large_320_fpn retinanet_resnet50_fpn maskrcnn_resnet50_fpn "
    "fcos_resnet50_fpn keypointrcnn_resnet50_fpn"
)
TIMM = (
    "resnet10t resnet26d mobilenetv3_small_050 efficientnet_lite0 tf_efficientnet_b0 regnetx_002 convnext_atto "
    "convnextv2_atto repvgg_a0 mobileone_s0 ghostnet_050 hardcorenas_a mobilevit_xxs mobilevitv2_050 "
    "edgenext_xx_small efficientvit_b0 fastvit_t8 levit_128s deit_tiny_patch16_224 poolformer_s12 pvt_v2_b0 "
    "crossvit_tiny_240 dla34 res2net50_26w_4s cspresnet50 hrnet_w18_small nf_resnet50"
)
NETWORKS = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]
LARGE = ("inception", "vit_b", "maxvit", "levit", "deit")  # networks that do not take 64x64 images
DETECTORS = ("ssdlite", "ssd300", "rcnn", "retinanet", "fcos")  # rounding may change the order of their boxes
UNTRACEABLE = (*DETECTORS, "mobilevit", "efficientvit")  # fold refuses to fold their BatchNorm


def largest_error(ours, theirs):
    pairs = zip(tensors_of(ours), tensors_of(theirs), strict=True)
    return max([relative_error(a, b) for a, b in pairs if b.numel()], default=0)


def is_equal(function, model, images, **settings):
    """False if the model is refused."""
    try:
        changed = function(model, example_input=images, **settings)
    except ConversionError as error:
        assert "\n" not in str(error)
        return False
    assert largest_error(changed(images), model(images)) <= 1e-4
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_network_is_converted_folded_and_deployed_with_equal_outputs_or_refused_in_one_line(name):
    pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(0)
    model = disturb(load_network(name)).eval()
    if getattr(model, "transform", None) and "ssd" not in name:
        model.transform.min_size, model.transform.max_size = (160,), 160
    side = 224 if any(part in name for part in LARGE) else 64
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    same = convert(model, "rank", alpha=1.0, grow=True, example_input=images)
    assert any(isinstance(layer, LinearConv) for layer in same.modules()) or "nf_" in name
    assert largest_error(same(images), model(images)) <= 1e-4
    small = convert(model, "rank", example_input=images)
    assert is_equal(deploy, small, images) or any(part in name for part in DETECTORS)
    assert is_equal(fold, model, images, batch_norm=True) or any(part in name for part in UNTRACEABLE)
