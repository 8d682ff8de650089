"""After a calibrated conversion, BatchNorm's statistics follow the changed inputs."""

import copy

import pytest
import torch
import torch.nn as nn

from linearconv_convert import convert


@pytest.fixture
def network():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    model = nn.Sequential(*first, nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16))
    model(torch.randn(64, 3, 8, 8) + 1)  # statistics of other images
    return model.eval()


def input_moments(model, norm, images):
    inputs = model[:norm](images)
    return inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False)


@torch.no_grad()
def test_statistics_change_as_much_as_those_of_the_inputs(network):
    images = torch.randn(32, 3, 8, 8)
    batches = [images[:8], images[8:]]
    converted = convert(network, "rank", alpha=0.25, calibration=batches)
    mean, var = input_moments(network, 1, images)
    new_mean, new_var = input_moments(converted, 1, images)
    torch.testing.assert_close(converted[1].running_mean, network[1].running_mean + new_mean - mean)
    factor = (new_var + converted[1].eps) / (var + network[1].eps)
    torch.testing.assert_close(converted[1].running_var, network[1].running_var * factor)


@torch.no_grad()
def test_a_later_layer_is_corrected_after_the_layers_before_it(network):
    images = torch.randn(64, 3, 8, 8)
    for norm in (network[1], network[4]):  # statistics of exactly these images
        norm.reset_running_stats()
        norm.momentum = None
    network.train()(images)
    network.eval()
    converted = convert(network, "rank", alpha=0.25, calibration=images)
    outputs = converted(images)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), torch.zeros(16), atol=1e-2, rtol=0)
    torch.testing.assert_close(outputs.var((0, 2, 3)), torch.ones(16), atol=5e-2, rtol=0)


@pytest.mark.parametrize("settings", [{"calibration": None}, {"init": "scratch"}, {"skip": "*"}])
@pytest.mark.filterwarnings("ignore::linearconv_convert.ConversionWarning")
def test_statistics_stay_without_a_fit_to_images(network, settings):
    converted = convert(network, "rank", **{"calibration": torch.randn(8, 3, 8, 8)} | settings)
    assert torch.equal(converted[4].running_mean, network[4].running_mean)
    assert torch.equal(converted[4].running_var, network[4].running_var)


def test_the_original_model_is_unchanged_and_one_position_has_no_variance(network):
    state = copy.deepcopy(network.state_dict())
    image = torch.randn(1, 3, 5, 5)  # one position for the second BatchNorm
    with pytest.warns(match="too few"):
        converted = convert(network, "rank", alpha=0.25, calibration=image)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(converted[4].running_var, state["4.running_var"])
    assert not torch.equal(converted[1].running_var, state["1.running_var"])
