"""The training scripts as tests run them."""

import json
from pathlib import Path

from models import allconv_xcnn, base_xcnn, mobilenetv2_xcnn, resnet_xcnn, resnext_xcnn, vgg_xcnn

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "base": ({"Base": base_xcnn.Base}, base_xcnn.RECIPE),
    "vgg": ({"VGG11": vgg_xcnn.VGG11}, vgg_xcnn.RECIPE),
    "allconv": ({"AllConv": allconv_xcnn.AllConv}, allconv_xcnn.RECIPE),
    "resnet": ({"ResNet18": resnet_xcnn.ResNet18, "ResNet34": resnet_xcnn.ResNet34}, resnet_xcnn.RECIPE),
    "resnext": ({"ResNeXt29_2x64d": resnext_xcnn.ResNeXt29_2x64d}, resnext_xcnn.RECIPE),
    "mobilenetv2": ({"MobileNetV2": mobilenetv2_xcnn.MobileNetV2}, mobilenetv2_xcnn.RECIPE),
}


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
