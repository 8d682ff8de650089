"""The report says of each convolution what became of it, and counts as independent counters do."""

import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import convert
from models.vgg_xcnn import VGG11
from tests.helpers.networks import images, tiny
from training.counting import count_parameters, macs_inference


def test_layers_that_would_not_get_smaller_are_left_alone_and_said_so():
    small, report = convert(tiny(), "rank", return_report=True)
    reasons = {row.name: row.reason for row in report.layers}
    assert type(small.depthwise) is nn.Conv2d and "would not get smaller (240 -> " in reasons["depthwise"]
    assert type(small.stem) is LinearConv and reasons["stem"] == ""
    assert report.parameters_after == count_parameters(small) < report.parameters_before == count_parameters(tiny())
    assert f"{len(report.converted)} of 6 convolutions converted" in str(report)


def test_the_report_counts_what_counting_counts():
    model = VGG11(width=0.25).eval()
    small, report = convert(model, "lowrank", rank=4, example_input=images(32), return_report=True)
    linear = model.fc.weight.numel()
    assert sum(row.macs_before for row in report.layers) == macs_inference(model, (3, 32, 32)) - linear
    assert sum(row.macs_after for row in report.layers) == macs_inference(small, (3, 32, 32)) - linear
    assert report.macs_before == macs_inference(model, (3, 32, 32))
    assert report.macs_after == macs_inference(small, (3, 32, 32))
    assert all(row.name in str(report) for row in report.layers) and "%" in str(report)
