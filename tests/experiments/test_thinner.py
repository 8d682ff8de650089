"""The thinner dense network is the closest one to the target."""

from pathlib import Path

import pytest

from experiments import thinner
from experiments.thinner import width_for
from models.base_xcnn import Base
from tests.helpers.commands import refusal
from training.counting import count_parameters
from training.errors import UsageError

SHAPE = {"in_channels": 3, "num_classes": 10}


def test_no_width_of_a_fine_grid_comes_closer():
    counts = [count_parameters(Base(width=step / 256)) for step in range(64, 320)]
    for target in (61_000, 227_418, 500_000):
        found = count_parameters(Base(width=width_for(Base, target, **SHAPE)))
        assert abs(found - target) <= min(abs(count - target) for count in counts if count <= 1.01 * target)


def test_the_target_is_exceeded_within_a_hundredth_only(monkeypatch):
    target = count_parameters(Base(width=0.75))
    assert width_for(Base, target - 100, **SHAPE) == 0.75
    monkeypatch.setattr(thinner, "TOLERANCE", 0)
    assert count_parameters(Base(width=width_for(Base, target - 100, **SHAPE))) < target
    with pytest.raises(UsageError, match="one channel a layer"):
        width_for(Base, 10, **SHAPE)


def test_the_command_prints_both_thinner_networks(capsys):
    assert thinner.main(["models/base_xcnn.py", "-t", "rank", "-r", "1"]) == 0
    linear, parameters, macs = capsys.readouterr().out.splitlines()
    assert linear.split() == "Base, rank1 227,418 parameters 8,759,296 multiply-adds".split()
    assert "227,146 parameters" in parameters and parameters.endswith("--width 0.75")
    assert "8,717,168 multiply-adds" in macs
    assert list(thinner.networks_of(Path("models/resnet_xcnn.py")))[:2] == ["ResNet18", "ResNet34"]


def test_bad_input_ends_in_one_line(capsys):
    assert "there is no script" in refusal(thinner.main, ["models/none_xcnn.py"], capsys)
    assert "has no networks" in refusal(thinner.main, ["models/__init__.py"], capsys)
