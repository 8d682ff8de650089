"""Networks are found by name, their weights in files, with a record in one file; all else is refused in one line."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torchvision.models import get_model

from linearconv_convert import ConversionError, convert, load_converted
from linearconv_convert.__main__ import main
from linearconv_convert.networks import convert_again, load_network, load_weights, read_record, setting_of
from models.base_xcnn import Base
from tests.helpers.networks import CONVERSIONS, tiny

ROOT = Path(__file__).resolve().parents[2]
BASE = f"{ROOT}/models/base_xcnn.py:Base"
NAME = "torchvision:squeezenet1_1"


@pytest.mark.parametrize("spec", [BASE, NAME, "timm:resnet10t"])
def test_a_network_of_each_source_takes_its_number_of_classes(spec):
    if spec.startswith("timm"):
        pytest.importorskip("timm")
        assert next(load_network(spec, in_channels=1).parameters()).shape[1] == 1
    model = load_network(spec, num_classes=7).eval()
    side = 32 if spec == BASE else 64
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("resnet18", "is not FILE.py:NAME"),
        ("nothing.py:Net", "there is no file nothing.py"),
        ("torchvision:resnet1", "torchvision cannot build resnet1: .*; there is resnet"),
        (f"{BASE[:-1]}", "defines no network Bas; it has Base, PoolTo"),
    ],
)
def test_a_name_without_a_network_is_refused(spec, message):
    with pytest.raises(ConversionError, match=message):
        load_network(spec)
    with pytest.raises(ConversionError, match="torchvision cannot build resnet18: its networks take images of 3"):
        load_network("torchvision:resnet18", in_channels=1)


@pytest.mark.parametrize(
    "source, message",
    [
        ("import nowhere_to_be_found", "cannot be imported: ModuleNotFoundError"),
        ("def Net(): pass", "returns a NoneType, not a network"),
        ("def Net(depth): pass", "does not take these arguments"),
    ],
)
def test_a_file_without_a_network_is_refused(source, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # undone at the end, with the folder that loading a file adds
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(ConversionError, match=message):
        load_network(f"{tmp_path}/net.py:Net")


@pytest.mark.parametrize(
    "name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"]
)
def test_random_weights_are_random_in_the_backbone_too(name, monkeypatch):
    def download(*arguments, **settings):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert load_network(f"torchvision:{name}", num_classes=4)


class Holder(nn.Module):
    """A network with an attribute called as the prefix of DataParallel."""

    def __init__(self):
        super().__init__()
        self.module = Base(width=0.5)


WRAPPERS = {
    "none": lambda model: model,
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled data parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("build", [partial(Base, width=0.5), Holder])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_in_state_dicts_and_checkpoints_of_wrapped_networks(wrapper, build, tmp_path):
    saved, model = build(), build()
    state = WRAPPERS[wrapper](saved).state_dict()
    torch.save({"model": state, "epoch": 3} if wrapper == "none" else state, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), saved.parameters(), strict=True))


def test_official_files_of_densenet_and_deeplab_fit(tmp_path):
    with torch.device("meta"):
        whole = get_model("deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, aux_loss=True)
    model = load_network("torchvision:deeplabv3_mobilenet_v3_large")
    state = {key: torch.zeros_like(tensor, device="cpu") for key, tensor in whole.state_dict().items()}
    assert any(key.startswith("aux_classifier") for key in state)
    torch.save(state, tmp_path / "deeplab.pth")
    assert load_weights(model, tmp_path / "deeplab.pth") == []
    assert not model.classifier[0].convs[0][0].weight.any()
    model = load_network("torchvision:densenet121")
    state = {re.sub(r"(layer\d+\.(norm|relu|conv))(\d)", r"\1.\3", key): v for key, v in model.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save({key: torch.zeros_like(tensor) for key, tensor in state.items()}, tmp_path / "densenet.pth")
    assert load_weights(model, tmp_path / "densenet.pth") == []
    assert not model.features.denseblock1.denselayer1.norm1.weight.any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_other_kinds_of_numbers_are_refused(dtype, tmp_path):
    state = Base(width=0.5).state_dict()
    state["fc.weight"] = state["fc.weight"].to(dtype)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=f"weights.pt does not fit the network: fc.weight is of {dtype}"):
        load_weights(Base(width=0.5), tmp_path / "weights.pt")


def test_a_damaged_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Base(width=0.5).state_dict(), path)
    whole = path.read_bytes()
    torch.save(Base(width=0.5).state_dict(), path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    damaged = [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", whole[: len(whole) // 2], old[: len(old) // 2], b"\xff" * 99]
    damaged += [old[:n] + b"\xff" + old[n + 1 :] for n in range(0, 600, 37)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ConversionError, match="weights.pt (cannot be read|has no|does not fit)") as caught:
            load_weights(Base(width=0.5), path)
            raise ConversionError("weights.pt does not fit: read without an error")
        assert "\n" not in str(caught.value)


def test_a_classifier_of_another_number_of_classes_is_left_unchanged_if_that_is_allowed(tmp_path):
    saved, model = Base(num_classes=7), Base(num_classes=4)
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    before = model.fc.weight.clone()
    assert load_weights(model, tmp_path / "weights.pt", num_classes=4) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, before) and torch.equal(model.feat[0][0].weight, saved.feat[0][0].weight)
    with pytest.raises(ConversionError, match="size mismatch"):
        load_weights(model, tmp_path / "weights.pt")


def test_heads_for_training_alone_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, *_, **__: tensor)  # takes seconds
    with torch.device("meta"):
        model = load_network("torchvision:googlenet", num_classes=4)
        whole = get_model("googlenet", weights=None, num_classes=4, init_weights=False)
    left = whole.state_dict().keys() - model.state_dict().keys()
    assert left and all(key.startswith(("aux1", "aux2")) for key in left) and not model.aux_logits
    torch.save(Base().state_dict() | {"aux1.fc.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    assert load_weights(Base(), tmp_path / "weights.pt") == []


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": Malicious()}, "cannot be read as tensors"),
        (b"no weights", "cannot be read as tensors"),
        ([1, 2], "has no state_dict"),
        (Base(width=0.5).state_dict(), "does not fit the network: size mismatch"),
        (convert(Base(), "rank", init="scratch").state_dict(), "of a LinearConv network already"),
    ],
    ids=["code", "text", "list", "thin", "converted"],
)
def test_files_without_weights_are_refused_and_execute_no_code(content, message, tmp_path, monkeypatch):
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


# ---- records ---------------------------------------------------------------------------------------------------------


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("settings", [*(each for each, _ in CONVERSIONS.values()), dict(type="rank", budget=0.6)])
def test_a_recorded_conversion_gives_the_same_layers(settings):
    small, report = convert(tiny(), **settings, skip=["thin"], compute="features", return_report=True)
    setting = json.loads(json.dumps(setting_of(report, settings["type"])))  # plain values
    again = convert_again(tiny(), setting)
    assert shapes(again) == shapes(small)
    again.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(again.eval()(images), small.eval()(images))
    assert again.twice.compute == "features"


@pytest.mark.parametrize("setting", [dict(type="rank", alpha=1.0), dict(type="lowrank", rank=40)])
def test_a_conversion_of_no_layer_gives_the_network_itself(setting):
    _, report = convert(tiny(), include=["thin"], **setting, return_report=True)
    assert shapes(convert_again(tiny(), setting_of(report, setting["type"]))) == shapes(tiny())
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
    with pytest.raises(ConversionError, match="wrong.pt does not fit the network"):
        load_converted(tmp_path / "wrong.pt")


@pytest.mark.parametrize("name", ["{folder}/evil.py:Net", "torchvision:/evil.py:Net", "timm:hf-hub:user/net", 3])
def test_a_record_executes_no_code(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('was_run').touch()")
    name = name.format(folder=tmp_path) if isinstance(name, str) else name
    record = {"name": name, "in_channels": 3, "num_classes": 3, "image_size": 32, "conversion": None}
    torch.save({"model": {}, "network": record}, "evil.pt")
    with pytest.raises(ConversionError, match="only networks of torchvision and timm"):
        load_converted("evil.pt")
    with pytest.raises(SystemExit):
        main(["evil.pt", "--export", "evil.pt2"])
    error = capsys.readouterr().err
    assert "only networks of torchvision and timm" in error and error.count("\n") == 1
    assert not (tmp_path / "was_run").exists()


def test_a_file_without_a_record_is_refused(tmp_path, capsys):
    for content in ({"model": tiny().state_dict()}, [1, 2]):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ConversionError, match="does not say which network it is of"):
            read_record(tmp_path / "weights.pt")
    record = {"name": NAME, "conversion": None}
    torch.save({"model": {}, "network": record}, tmp_path / "small.pt")
    for words, message in (("", "--export"), ("--budget 0.5", "--budget")):
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path / "small.pt"), *words.split()])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and message in error
