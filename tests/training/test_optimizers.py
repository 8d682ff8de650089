"""What a recipe's optimizer does to which parameter, against steps taken by hand."""

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import balance
from tests.helpers.layers import prune_half, variants
from training.optimizers import FilterDecay, make_optimizer
from training.recipe import Recipe

LR, DECAY = 0.1, 0.3


def network(conv=nn.Conv2d):
    return nn.Sequential(conv(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 2)).double()


def with_zero_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("optimizer, shrinks", [("adamw", 1 - LR * DECAY), ("sgd", 1 - LR * DECAY * 1.9)])
def test_matrices_decay_and_vectors_do_not(optimizer, shrinks):
    model = network()
    before = with_zero_gradients(model)
    make_optimizer(model, Recipe(LR, 1, optimizer=optimizer, weight_decay=DECAY)).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (shrinks if parameter.dim() > 1 else 1))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@variants
def test_filters_decay_as_if_they_were_the_parameters(variant, optimizer):
    model, recipe = network(variant), Recipe(LR, 1, optimizer=optimizer, weight_decay=DECAY, decay="filters")
    layer = prune_half(model[0])
    primary, factors = layer.conv_weights.detach().flatten(1), [factor.detach() for factor in layer.factors()]
    a = torch.linalg.multi_dot(factors) if len(factors) > 1 else factors[0]
    by_primary = (torch.eye(len(primary)) + a.T @ a).double() @ primary
    by_a = a @ primary @ primary.T
    expected = {"conv_weights": by_primary.view_as(layer.conv_weights)}
    if len(factors) > 1:
        expected |= {"column_weights": by_a @ factors[1].T, "row_weights": factors[0].T @ by_a}
    else:
        expected |= {"linear_weights": by_a * getattr(layer, "mask", 1)}

    before = with_zero_gradients(model)
    optimizer = make_optimizer(model, recipe)
    FilterDecay(model, recipe).before_step(LR)
    optimizer.step()
    speed = 1.9 if recipe.optimizer == "sgd" else 1  # the first step of Nesterov momentum
    for name, gradient in expected.items():
        moved = before[f"0.{name}"] - model.get_parameter(f"0.{name}")
        torch.testing.assert_close(moved, speed * LR * DECAY * gradient)
    torch.testing.assert_close(layer.bias, before["0.bias"])
    torch.testing.assert_close(model[3].weight, before["3.weight"] * (1 - speed * LR * DECAY))


def test_filters_of_balanced_layers_decay():
    layer = balance(LinearConv(4, 6, 3, bias=False))
    before, recipe = layer.weight.detach(), Recipe(LR, 1, optimizer="adamw", weight_decay=1e-3, decay="filters")
    FilterDecay(layer, recipe).before_step(LR)
    change = layer.weight.detach() - before
    assert 0 < change.norm() < 1e-3 * before.norm() and (change * before).sum() < 0
