"""Balanced parameters: the same function and sizes, even factors, and the parameters of LinearConv afterwards."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.nn.utils.parametrizations import weight_norm

from linearconv import LinearConv
from linearconv_convert import balance, convert, deploy, unbalance
from linearconv_lowrank import LinearConvLowRank
from linearconv_sparse import LinearConvSparse

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def converted():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 8, 1)
    )
    return convert(model.eval(), "rank", calibration=IMAGES)


def sizes(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_outputs_and_sizes_stay_equal(converted):
    expected, state = converted(IMAGES), converted.state_dict()
    balanced = balance(copy.deepcopy(converted))
    assert sizes(balanced) == sizes(converted)
    torch.testing.assert_close(balanced(IMAGES), expected)
    torch.testing.assert_close(deploy(balanced, example_input=IMAGES)(IMAGES), expected)
    restored = unbalance(balanced)
    torch.testing.assert_close(restored.state_dict(), state)
    assert all(parameter.is_leaf for parameter in restored.parameters())
    assert type(restored[2]) is LinearConv


def test_the_factors_have_the_square_roots_of_the_singular_values(converted):
    layer = balance(converted)[2]
    filters, coefficients = layer.parametrizations["conv_weights"], layer.parametrizations["linear_weights"]
    stacked = torch.cat((filters[0].basis, coefficients.original))  # [G ; B]
    expected = torch.linalg.svdvals(layer.weight.flatten(1))[: layer.primary_channels].sqrt()
    torch.testing.assert_close(torch.linalg.svdvals(stacked), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.linalg.svdvals(filters.original.flatten(1)), expected, rtol=1e-3, atol=1e-5)


def test_training_changes_filters_and_coefficients_but_not_the_basis(converted):
    balanced = balance(converted.train())
    before = copy.deepcopy(balanced.state_dict())
    optimizer = torch.optim.SGD(balanced.parameters(), lr=1e-2)
    balanced(IMAGES).square().mean().backward()
    optimizer.step()
    changed = {key for key, value in balanced.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if not key.endswith(("basis", "inverse"))}
    expected = balanced(IMAGES)
    torch.testing.assert_close(unbalance(balanced)(IMAGES), expected)


def test_a_copy_stays_balanced_when_its_original_does_not(converted):
    balanced = balance(converted)
    twin, expected = copy.deepcopy(balanced), balanced(IMAGES)
    unbalance(balanced)
    torch.testing.assert_close(twin(IMAGES), expected)
    torch.testing.assert_close(balance(twin)(IMAGES), expected)  # a second time changes nothing
    torch.testing.assert_close(unbalance(twin)(IMAGES), expected)


def test_parameters_are_computed_in_full_precision_under_autocast(converted):
    layer = balance(converted)[2]
    expected = layer.conv_weights, layer.linear_weights
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close((layer.conv_weights, layer.linear_weights), expected, rtol=0, atol=0)


def test_other_layers_stay_unchanged():
    layers = LinearConvLowRank(8, 16, 3, rank=2), LinearConvSparse(8, 16, 3), LinearConv(8, 16, 3, alpha=1)
    model = nn.Sequential(*layers, weight_norm(LinearConv(8, 16, 3), "conv_weights"), nn.Conv2d(16, 4, 1))
    names = list(model.state_dict())
    assert list(balance(model).state_dict()) == names
    assert list(unbalance(model).state_dict()) == names


def test_grouped_layers_and_a_single_layer():
    torch.manual_seed(0)
    layer, images = LinearConv(8, 16, 3, groups=2), torch.randn(2, 8, 6, 6)
    expected = layer(images)
    torch.testing.assert_close(balance(layer)(images), expected)
    torch.testing.assert_close(unbalance(layer)(images), expected)


def test_complex_layers():
    torch.manual_seed(0)
    layer, images = LinearConv(4, 8, 3, dtype=torch.complex64), torch.randn(2, 4, 6, 6, dtype=torch.complex64)
    expected, values = layer(images), torch.linalg.svdvals(layer.weight.flatten(1))
    torch.testing.assert_close(balance(layer)(images), expected)
    factor = layer.parametrizations["conv_weights"].original.flatten(1)  # D
    torch.testing.assert_close(torch.linalg.svdvals(factor), values[: layer.primary_channels].sqrt())
    torch.testing.assert_close(unbalance(layer)(images), expected)


@pytest.mark.parametrize("change", ["zero filter", "all zero", "dependent", "more filters than elements"])
def test_layers_whose_filters_are_dependent(change):
    torch.manual_seed(0)
    layer = LinearConv(2, 16, 1) if change.startswith("more") else LinearConv(8, 16, 3)
    with torch.no_grad():
        if change == "zero filter":
            layer.conv_weights[3] = 0
        elif change == "all zero":
            layer.conv_weights.zero_()
        elif change == "dependent":
            layer.conv_weights[1:] = layer.conv_weights[:1]
    images = torch.randn(2, layer.in_channels, 6, 6)
    expected, state = layer(images), copy.deepcopy(layer.state_dict())
    balance(layer)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(images).float(), expected, rtol=0.05, atol=0.05)
    layer(images).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    torch.testing.assert_close(layer(images), expected)
    torch.testing.assert_close(unbalance(layer).state_dict(), state, rtol=1e-4, atol=1e-4)
