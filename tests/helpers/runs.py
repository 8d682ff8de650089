"""The training scripts as tests run them."""

from pathlib import Path

from models import (
    allconv_xcnn,
    base_xcnn,
    mobilenetv2_xcnn,
    resnet_xcnn,
    resnext_xcnn,
    squeezenet_xcnn,
    vgg_xcnn,
    zoo_xcnn,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {  # networks, recipe, recipe for the digits: what a script hands to `main`
    name: ({network.__name__: network for network in networks}, script.RECIPE, script.DIGITS_RECIPE)
    for name, script, networks in (
        ("base", base_xcnn, [base_xcnn.Base]),
        ("vgg", vgg_xcnn, [vgg_xcnn.VGG11]),
        ("allconv", allconv_xcnn, [allconv_xcnn.AllConv]),
        ("resnet", resnet_xcnn, [resnet_xcnn.ResNet18, resnet_xcnn.ResNet34]),
        ("resnext", resnext_xcnn, [resnext_xcnn.ResNeXt29_2x64d]),
        ("mobilenetv2", mobilenetv2_xcnn, [mobilenetv2_xcnn.MobileNetV2]),
        ("squeezenet", squeezenet_xcnn, [squeezenet_xcnn.SqueezeNet]),
    )
}
EVERY_SCRIPT = SCRIPTS | {"zoo": (zoo_xcnn.Library(), zoo_xcnn.RECIPE, None)}
