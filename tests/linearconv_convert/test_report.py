"""The report counts as independent counters do; a warning names what was not converted, in one line with the reason."""

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


def test_layers_that_would_not_get_smaller_are_left_alone_with_the_reason():
    small, report = convert(tiny(), "rank", return_report=True)
    reasons = {row.name: row.reason for row in report.layers}
    assert type(small.depthwise) is nn.Conv2d and "would not get smaller (240 -> " in reasons["depthwise"]
    assert type(small.stem) is LinearConv and reasons["stem"] == ""
    assert report.parameters_after == count_parameters(small) < report.parameters_before == count_parameters(tiny())
    assert f"{len(report.converted)} of 6 convolutions converted" in str(report)
    assert report.others == {"Linear": [45]} and "not converted: 1 Linear of 45" in str(report)


def test_the_report_counts_as_counting_does():
    model = VGG11(width=0.25).eval()
    small, report = convert(model, "lowrank", rank=4, example_input=images(32), return_report=True)
    linear = model.fc.weight.numel()
    assert sum(row.macs_before for row in report.layers) == macs_inference(model, (3, 32, 32)) - linear
    assert sum(row.macs_after for row in report.layers) == macs_inference(small, (3, 32, 32)) - linear
    assert report.macs_before == macs_inference(model, (3, 32, 32))
    assert report.macs_after == macs_inference(small, (3, 32, 32))
    assert all(row.name in str(report) for row in report.layers) and "%" in str(report)


class Patches(nn.Module):
    """A layer that sees four patches of each image, one that sees the image, and attention over the patches."""

    def __init__(self):
        super().__init__()
        self.whole, self.patch = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x):
        x = self.whole(x).unfold(2, 6, 6).unfold(3, 6, 6)  # (N, 16, 2, 2, 6, 6)
        x = self.patch(x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))  # (4 N, 32, 6, 6)
        tokens = x.mean((2, 3)).unflatten(0, (-1, 4))  # (N, 4, 32)
        return self.attention(tokens, tokens, tokens)[0]


@pytest.mark.parametrize("example", [images(12), images(12, batch=5)])
def test_layers_that_see_another_batch_and_attention_are_counted_for_one_image(example):
    setting = {"compute": "features", "example_input": example, "return_report": True}
    _, report = convert(Patches().eval(), "rank", **setting)
    whole, patch = report.layers
    assert whole.macs_before == 144 * 16 * 27 and patch.macs_before == 4 * 36 * 32 * 144
    attention = 4 * 32 * 96 + 4 * 32 * 32 + 2 * 4 * 4 * 32  # projections, softmax(Q K^T) V
    assert report.macs_before == whole.macs_before + patch.macs_before + attention
    assert 0 < report.macs_after < report.macs_before


def warned(call, *arguments, **settings):
    """The messages of the ConversionWarnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **settings)
    assert all(each.filename == __file__ for each in caught if each.category is ConversionWarning)
    return [str(each.message) for each in caught if each.category is ConversionWarning]


NARROW = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 64, 1), nn.Flatten(), nn.Linear(64, 100))


@pytest.mark.parametrize(
    "model, message",
    [
        (NARROW, "nothing was converted: 1 Linear of 6,500 not converted; 2 convolutions of 2,432 would not get"),
        (nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(62, 1600)), "only 0.5% of the parameters were saved: 1 Lin"),
    ],
)
def test_a_model_of_which_little_is_converted_gets_one_line(model, message):
    (line,) = warned(convert, model, "rank")
    assert "\n" not in line and re.match(message, line)


@pytest.mark.parametrize("settings", [{}, {"include": "stem"}, {"budget": 0.97}, {"alpha": 1.0, "grow": True}])
def test_settings_of_the_user_give_no_warning(settings):
    assert warned(convert, tiny(), "rank", **settings) == []


def test_calibration_on_fewer_positions_than_channels_gives_a_warning():
    conv, positions = nn.Conv2d(3, 16, 3), 4 * 16
    (line,) = warned(convert, conv, "rank", calibration=torch.randn(positions - 1, 3, 3, 3))
    assert line.startswith("calibration gives only 63 positions of 16 channels in layer ''") and "2 times" in line
    assert warned(convert, conv, "rank", calibration=torch.randn(positions, 3, 3, 3)) == []


def test_folding_without_effect_gives_a_warning():
    before = disturb(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))).eval()
    (line,) = warned(fold, before, batch_norm=True)
    assert line.startswith("no BatchNorm was folded: of 1, none")
    assert warned(fold, tiny(), batch_norm=True) == warned(fold, before) == []
    assert warned(fold, nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), batch_norm=True) == []
