"""Networks are found by name, their weights in files, with a record in one file; all else is refused in one line."""

import json
import random
import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torchvision.models import get_model

from linearconv_convert import ConversionError, convert, load_converted
from linearconv_convert.__main__ import main
from linearconv_convert.networks import convert_again, load_network, load_tensors, load_weights, setting_of
from models.base_xcnn import Base
from tests.helpers.commands import refusal
from tests.helpers.networks import CONVERSIONS, images, tiny
from tests.helpers.runs import ROOT

BASE = f"{ROOT}/models/base_xcnn.py:Base"
NAME = "torchvision:squeezenet1_1"
RECORD = {"name": NAME, "in_channels": 3, "num_classes": 3, "image_size": 32, "conversion": None}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # undone at the end, with the folder that loading a file adds


@pytest.mark.parametrize("spec", [BASE, NAME, "timm:resnet10t"])
def test_a_network_of_each_source_takes_its_number_of_classes(spec):
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    model = load_network(spec, num_classes=7).eval()
    assert model(images(64)).shape == (2, 7)
    if spec != NAME:
        assert next(load_network(spec, in_channels=1).parameters()).shape[1] == 1


@pytest.mark.parametrize(
    "spec, source, message",
    [
        ("torchvision:resnet1", "", "torchvision cannot build resnet1: "),
        ("nothing.py:Net", "", "nothing.py cannot build Net: FileNotFoundError"),
        ("net.py:Net", "exit()", "net.py cannot build Net: SystemExit"),
        ("net.py:Net", "def Other(): pass", "has no function or class Net that returns a network"),
        ("net.py:Net", "def Net(depth): pass", "cannot build Net: TypeError: .* missing 1 required"),
    ],
)
def test_a_name_without_a_network_is_refused(spec, source, message):
    Path("net.py").write_text(source)
    with pytest.raises(ConversionError, match=message):
        load_network(spec)
    with pytest.raises(ConversionError, match="torchvision cannot build resnet18: its networks take images of 3"):
        load_network("torchvision:resnet18", in_channels=1)


def test_random_weights_are_random_in_the_backbone_too(monkeypatch):
    def download(*arguments, **settings):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert load_network("torchvision:lraspp_mobilenet_v3_large", num_classes=4)


class Holder(nn.Module):
    """A network with an attribute called as the prefix of DataParallel."""

    def __init__(self):
        super().__init__()
        self.module = Base(width=0.5)


WRAPPERS = {
    "none": lambda model: model,
    "compiled": torch.compile,
    "compiled data parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("build", [partial(Base, width=0.5), Holder])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_in_state_dicts_and_checkpoints_of_wrapped_networks(wrapper, build):
    saved, model = build(), build()
    state = WRAPPERS[wrapper](saved).state_dict()
    torch.save({"model": state, "epoch": 3} if wrapper == "none" else state, "weights.pt")
    load_weights(model, "weights.pt")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), saved.parameters(), strict=True))


def test_official_files_of_densenet_and_deeplab_fit():
    with torch.device("meta"):
        whole = get_model("deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, aux_loss=True)
    deeplab = {key: torch.zeros_like(tensor, device="cpu") for key, tensor in whole.state_dict().items()}
    assert any(key.startswith("aux_classifier") for key in deeplab)
    densenet = load_network("torchvision:densenet121").state_dict()
    densenet = {re.sub(r"(layer\d+\.(norm|relu|conv))(\d)", r"\1.\3", key): 0 * v for key, v in densenet.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in densenet
    for name, state in (("deeplabv3_mobilenet_v3_large", deeplab), ("densenet121", densenet)):
        model = load_network(f"torchvision:{name}")
        torch.save(state, "weights.pth")
        assert load_weights(model, "weights.pth") == []
        assert not any(parameter.any() for parameter in model.parameters())


def test_a_classifier_of_another_number_of_classes_is_left_unchanged_if_that_is_allowed():
    saved, model = Base(num_classes=7), Base(num_classes=4)
    torch.save(saved.state_dict(), "weights.pt")
    before = model.fc.weight.clone()
    assert load_weights(model, "weights.pt", num_classes=4) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, before) and torch.equal(model.feat[0][0].weight, saved.feat[0][0].weight)
    with pytest.raises(ConversionError, match="size mismatch"):
        load_weights(model, "weights.pt")


def test_heads_for_training_alone_are_left_out(monkeypatch):
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, *_, **__: tensor)  # takes seconds
    with torch.device("meta"):
        model = load_network("torchvision:googlenet", num_classes=4)
    assert not model.aux_logits and not any(key.startswith("aux") for key in model.state_dict())


def test_a_damaged_file_is_refused_with_its_name():
    path = Path("weights.pt")
    torch.save(Base(width=0.5).state_dict(), path)
    whole = path.read_bytes()
    torch.save(Base(width=0.5).state_dict(), path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    damaged = [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", whole[: len(whole) // 2], old[: len(old) // 2]]
    damaged += [old[:n] + b"\xff" + old[n + 1 :] for n in range(0, 600, 37)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ConversionError, match="weights.pt (cannot be read|has no|does not fit)") as caught:
            load_weights(Base(width=0.5), path)
            raise ConversionError("weights.pt does not fit: read without an error")
        assert "\n" not in str(caught.value)


def test_no_flipped_bit_loads_other_weights():
    path, draw = Path("weights.pt"), random.Random(0)
    torch.save(Base(width=0.125).state_dict(), path)
    good, whole = load_tensors(path), path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with suppress(ConversionError):
            torch.testing.assert_close(load_tensors(path), good, rtol=0, atol=0)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": Malicious()}, "cannot be read as tensors"),
        ([1, 2], "has no state_dict"),
        (Base(width=0.5).state_dict(), "does not fit the network: size mismatch"),
        (convert(Base(), "rank", init="scratch").state_dict(), "of a LinearConv network already"),
        (Base().state_dict() | {"fc.weight": torch.ones(1).long()}, "fc.weight is of torch.int64"),
    ],
    ids=["code", "list", "thin", "converted", "int"],
)
def test_files_without_weights_are_refused_and_execute_no_code(content, message):
    torch.save(content, "weights.pt")
    with pytest.raises(ConversionError, match=message) as caught:
        load_weights(Base(), "weights.pt")
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path().iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("settings", [*(each for each, _ in CONVERSIONS.values()), dict(type="rank", budget=0.6)])
def test_a_recorded_conversion_gives_the_same_layers(settings):
    small, report = convert(tiny(), **settings, skip=["thin"], compute="features", return_report=True)
    setting = json.loads(json.dumps(setting_of(report, settings["type"])))  # plain values
    again = convert_again(tiny(), setting)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(images()), small.eval()(images()))
    assert again.twice.compute == "features"


OTHERS = "only networks of torchvision and timm"
UNKNOWN = "does not say which network it is of"


@pytest.mark.parametrize(
    "content, words, message",
    [
        ({"network": RECORD | {"name": "{folder}/evil.py:Net"}}, "--export evil.pt2", OTHERS),
        ({"network": RECORD | {"name": "torchvision:/evil.py:Net"}}, "--export evil.pt2", OTHERS),
        ({"network": {"name": NAME, "conversion": None}}, "--export net.pt2", UNKNOWN),
        ([1, 2], "--export net.pt2", UNKNOWN),
        ({"network": RECORD}, "--budget 0.5", "--budget"),
    ],
)
def test_a_file_that_names_no_network_is_refused_and_executes_no_code(content, words, message, tmp_path, capsys):
    Path("evil.py").write_text("from pathlib import Path\nPath('was_run').touch()")
    if isinstance(content, dict):
        content["network"]["name"] = str(content["network"]["name"]).format(folder=tmp_path)
        content["model"] = {}
    torch.save(content, "evil.pt")
    assert message in refusal(main, ["evil.pt", *words.split()], capsys)
    if message in (OTHERS, UNKNOWN):
        with pytest.raises(ConversionError, match=message):
            load_converted("evil.pt")
    assert not Path("was_run").exists()
