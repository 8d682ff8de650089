"""Networks are found by name, their weights in files, and what is neither is told in one line."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from linearconv_convert import ConversionError, convert, load_converted
from linearconv_convert.__main__ import main
from linearconv_convert.networks import convert_again, load_network, load_weights, read_record, setting_of
from models.base_xcnn import Base
from tests.helpers.networks import CONVERSIONS, tiny

ROOT = Path(__file__).resolve().parents[2]
BASE = f"{ROOT}/models/base_xcnn.py:Base"


@pytest.mark.parametrize("spec", [BASE, "torchvision:squeezenet1_1", "timm:resnet10t"])
def test_a_network_of_each_source_takes_its_number_of_classes(spec):
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    model = load_network(spec, num_classes=7).eval()
    assert model(torch.zeros(2, 3, 32 if spec == BASE else 64, 32 if spec == BASE else 64)).shape == (2, 7)


@pytest.mark.parametrize("spec", [BASE, "timm:resnet10t"])
def test_a_network_takes_images_of_one_channel(spec):
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    assert next(load_network(spec, in_channels=1).parameters()).shape[1] == 1


@pytest.mark.parametrize(
    "spec, message",
    [
        ("resnet18", "is not FILE.py:NAME"),
        ("nothing.py:Net", "there is no file nothing.py"),
        ("torchvision:resnet1", "torchvision cannot build resnet1: .*; there is resnet"),
        (f"{BASE[:-1]}", "defines no network Bas; it has Base, PoolTo"),
        (f"{BASE}:Base", "is not FILE.py:NAME"),
    ],
)
def test_what_is_no_network_is_told(spec, message):
    with pytest.raises(ConversionError, match=message):
        load_network(spec)


def test_a_library_refuses_what_it_cannot_build():
    with pytest.raises(ConversionError, match="torchvision cannot build resnet18: its networks take images of 3"):
        load_network("torchvision:resnet18", in_channels=1)


@pytest.mark.parametrize(
    "source, message",
    [
        ("import nowhere_to_be_found", "cannot be imported: ModuleNotFoundError"),
        ("def Net(): pass", "gives a NoneType, not a network"),
        ("def Net(depth): pass", "does not take these arguments"),
        ("", "defines no network Net; it has none"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(source, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # undone at the end, with what loading a file adds
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(ConversionError, match=message):
        load_network(f"{tmp_path}/net.py:Net")


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_in_state_dicts_and_checkpoints(wrap, prefix, tmp_path):
    saved, model = Base(width=0.5), Base(width=0.5)
    torch.save(wrap({prefix + key: value for key, value in saved.state_dict().items()}), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), saved.parameters(), strict=True))


def test_a_classifier_of_another_number_of_classes_is_left_where_that_is_allowed(tmp_path):
    saved, model = Base(num_classes=7), Base(num_classes=4)
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    before = model.fc.weight.clone()
    assert load_weights(model, tmp_path / "weights.pt", num_classes=4) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, before) and torch.equal(model.feat[0][0].weight, saved.feat[0][0].weight)
    with pytest.raises(ConversionError, match="size mismatch"):
        load_weights(model, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match="size mismatch"):
        load_weights(Base(num_classes=4, width=0.5), tmp_path / "weights.pt", num_classes=4)


@pytest.mark.parametrize("name, head", [("googlenet", "aux1"), ("inception_v3", "AuxLogits")])
def test_heads_for_training_alone_are_left_out(name, head, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, *_, **__: tensor)  # takes its time
    with torch.device("meta"):
        model = load_network(f"torchvision:{name}", num_classes=4)
        whole = get_model(name, weights=None, num_classes=4, init_weights=False)
    keys = model.state_dict().keys()
    left = whole.state_dict().keys() - keys
    assert left and all(key.startswith(("aux1", "aux2", "AuxLogits")) for key in left)
    assert not model.aux_logits and any(key.startswith(head) for key in left)


def test_weights_of_heads_for_training_alone_are_passed_over(tmp_path):
    saved = Base().state_dict()
    torch.save(saved | {"aux1.fc.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    assert load_weights(Base(), tmp_path / "weights.pt") == []


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": Malicious()}, "cannot be read as tensors"),
        (b"no weights", "cannot be read as tensors"),
        ([1, 2], "holds no state_dict"),
        (Base(width=0.5).state_dict(), "does not fit the network: size mismatch"),
        (convert(Base(), "rank", init="scratch").state_dict(), "of a LinearConv network already"),
    ],
    ids=["code", "text", "list", "thin", "converted"],
)
def test_files_that_are_no_weights_are_told_and_run_no_code(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConversionError, match=message) as caught:
        load_weights(Base(), path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


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
