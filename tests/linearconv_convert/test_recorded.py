"""A file of weights says which network it is of, and how that was converted."""

import json
from functools import partial

import pytest
import torch

from linearconv_convert import ConversionError, convert, load_converted
from linearconv_convert.__main__ import main
from linearconv_convert.networks import load_network
from linearconv_convert.recorded import convert_again, read_record, setting_of
from tests.helpers.networks import CONVERSIONS, tiny

NAME = "torchvision:squeezenet1_1"


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("settings", [*(each for each, _ in CONVERSIONS.values()), dict(type="rank", budget=0.6)])
@pytest.mark.parametrize("compute", ["auto", "features"])
def test_a_recorded_conversion_gives_the_same_layers(settings, compute):
    small, report = convert(tiny(), **settings, skip=["thin"], compute=compute, return_report=True)
    setting = json.loads(json.dumps(setting_of(report, settings["type"])))  # plain values
    again = convert_again(tiny(), setting)
    assert shapes(again) == shapes(small)
    again.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(again.eval()(images), small.eval()(images))
    assert [layer.compute for layer in again.modules() if hasattr(layer, "compute")] == [
        layer.compute for layer in small.modules() if hasattr(layer, "compute")
    ]


def test_a_conversion_of_nothing_gives_the_network_itself():
    _, report = convert(tiny(), "rank", include=["thin"], alpha=1.0, return_report=True)
    assert shapes(convert_again(tiny(), setting_of(report, "rank"))) == shapes(tiny())
    assert shapes(convert_again(tiny(), None)) == shapes(tiny())


def test_a_file_alone_gives_the_network_back(tmp_path):
    make = partial(load_network, NAME, num_classes=3)
    small, report = convert(make(), "lowrank", rank=3, return_report=True)
    record = {"name": NAME, "in_channels": 3, "num_classes": 3, "image_size": 32}
    record["conversion"] = setting_of(report, "lowrank")
    torch.save({"model": small.state_dict(), "network": record}, tmp_path / "small.pt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_converted(tmp_path / "small.pt").eval()(images), small.eval()(images))
    torch.save({"model": make().state_dict(), "network": record}, tmp_path / "wrong.pt")
    with pytest.raises(ConversionError, match="does not fit its record"):
        load_converted(tmp_path / "wrong.pt")


def test_a_file_that_says_nothing_is_told(tmp_path, capsys):
    for content in ({"model": tiny().state_dict()}, tiny().state_dict(), [1, 2]):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ConversionError, match="does not say which network it is of"):
            read_record(tmp_path / "weights.pt")
    for words, told in (("--export small.onnx", "does not say"), ("", "--export"), ("--budget 0.5", "--budget")):
        with pytest.raises(SystemExit) as stop:
            main([str(tmp_path / "weights.pt"), *words.split()])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and told in error
