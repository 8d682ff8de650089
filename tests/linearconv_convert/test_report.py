"""The report says of each convolution what became of it, and counts as independent counters do."""

import re
import warnings

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import ConversionWarning, convert, fold
from models.vgg_xcnn import VGG11
from tests.helpers.networks import disturb, images, tiny
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


class Scaled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def narrow():
    return nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 64, 1), nn.Flatten(), nn.Linear(64, 100))


def told(call, *arguments, **settings):
    """The messages of the ConversionWarnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **settings)
    assert all(each.filename == __file__ for each in caught if each.category is ConversionWarning)
    return [str(each.message) for each in caught if each.category is ConversionWarning]


@pytest.mark.parametrize(
    "model, settings, message",
    [
        (
            nn.Sequential(Scaled(8, 16, 3)),
            {},
            "nothing was converted: 1 convolution of 1.2 k Scaled adds to nn.Conv2d",
        ),
        (
            narrow(),
            {},
            "nothing was converted: 1 Linear of 6.5 k not converted; 2 convolutions of 2.4 k would not get smaller",
        ),
        (
            nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(99, 999)),
            {},
            "only 0.5 % of the parameters were saved: 1 Linear",
        ),
        (tiny(), {"skip": "*"}, "nothing was converted: 6 convolutions of .* skipped"),
        (tiny(), {"budget": 1.0}, "nothing was converted: 6 convolutions of .* plain is best"),
    ],
)
def test_a_model_of_which_little_is_converted_gets_one_line(model, settings, message):
    (line,) = told(convert, model, "rank", **settings)
    assert "\n" not in line and re.match(message, line)


@pytest.mark.parametrize("settings", [{}, {"include": "stem"}, {"budget": 0.97}, {"alpha": 1.0, "grow": True}])
def test_what_was_asked_for_is_not_warned_of(settings):
    assert told(convert, tiny(), "rank", **settings) == []


def test_calibration_on_fewer_positions_than_channels_is_told():
    conv, positions = nn.Conv2d(3, 16, 3), 4 * 16
    (line,) = told(convert, conv, "rank", calibration=torch.randn(positions - 1, 3, 3, 3))
    assert line.startswith("calibration gives only 63 positions of 16 channels in layer ''")
    assert told(convert, conv, "rank", calibration=torch.randn(positions, 3, 3, 3)) == []


def test_folding_without_effect_is_told():
    before = disturb(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))).eval()
    (line,) = told(fold, before, batch_norm=True)
    assert line.startswith("no BatchNorm was folded: 1 are there")
    assert told(fold, tiny(), batch_norm=True) == told(fold, before) == []
    assert told(fold, nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), batch_norm=True) == []


def test_the_report_names_what_is_no_convolution():
    _, report = convert(tiny(), "rank", return_report=True)
    assert report.others == {"Linear": (1, 45)} and "not converted: 1 Linear of 45" in str(report)
