"""The pruning controllers: they reach what they are asked for, count training only, and survive saving."""

import copy

import pytest
import torch
import torch.nn as nn

from linearconv_sparse import PUBLISHED_INTERVAL, PUBLISHED_STEP, LinearConvSparse, schedule_pruning


def train(layer, steps):
    layer.train()
    for _ in range(steps):
        layer(torch.randn(1, layer.in_channels, 3, 3))
    return layer


@pytest.mark.parametrize("sparsity", (0, 0.25, 0.5, 0.9))
def test_gradual_pruning_reaches_its_target_along_the_cubic_and_stays(sparsity):
    layer = LinearConvSparse(3, 64, 3, sparsity=sparsity, prune_begin=10, prune_end=50, prune_every=5)
    for step in range(1, 71):
        train(layer, 1)
        if step < 10:
            assert layer.pruned_fraction == 0
        elif step in (10, 15, 30, 50):
            expected = sparsity * (1 - (1 - (step - 10) / 40) ** 3)
            assert layer.pruned_fraction == pytest.approx(expected, abs=1 / layer.mask.numel())
    assert layer.pruned_fraction == pytest.approx(sparsity, abs=1 / layer.mask.numel())


def test_the_smallest_coefficients_go_first():
    layer = train(LinearConvSparse(3, 32, 3, sparsity=0.5, prune_end=20), 20)
    magnitude, kept = layer.linear_weights.abs(), layer.mask.bool()
    assert magnitude[~kept].max() <= magnitude[kept].min()
    assert layer.threshold.item() == pytest.approx(magnitude[~kept].max().item())


def test_ties_do_not_prune_more_than_asked():
    layer = LinearConvSparse(3, 16, 3, sparsity=0.5, prune_end=1)
    nn.init.constant_(layer.linear_weights, 0.1)
    assert train(layer, 1).pruned_fraction == 0.5


def test_pruned_coefficients_do_not_act_and_get_no_gradient():
    layer = train(LinearConvSparse(3, 16, 3, sparsity=0.5, prune_end=1), 1)
    output = layer(torch.randn(2, 3, 5, 5))
    output.square().sum().backward()
    pruned = layer.mask == 0
    assert (layer.linear_weights.grad[pruned] == 0).all() and (layer.linear_weights.grad[~pruned] != 0).any()
    layer.eval()
    image = torch.randn(1, 3, 5, 5)
    before = layer(image)
    with torch.no_grad():
        layer.linear_weights[pruned] = 100
    torch.testing.assert_close(layer(image), before)


def test_only_training_passes_count():
    layer = LinearConvSparse(3, 8, 3, prune_end=4)
    layer.eval()
    for _ in range(5):
        layer(torch.randn(1, 3, 3, 3))
    layer.train()
    with torch.no_grad():
        layer(torch.randn(1, 3, 3, 3))
    assert layer.steps.item() == 0
    train(layer, 3)
    assert layer.steps.item() == 3


def test_saving_and_loading_goes_on_where_it_stopped():
    torch.manual_seed(0)
    layer = train(LinearConvSparse(3, 32, 3, sparsity=0.5, prune_end=40), 20)
    again = LinearConvSparse(3, 32, 3, sparsity=0.5, prune_end=40)
    train(again, 7)
    again.load_state_dict(layer.state_dict())
    copied = copy.deepcopy(layer)
    for other in (again, copied):
        assert other.steps.item() == 20 and torch.equal(other.mask, layer.mask)
        train(other, 20)
    train(layer, 20)
    assert layer.pruned_fraction == 0.5
    for other in (again, copied):
        assert torch.equal(other.mask, layer.mask) and other.threshold == layer.threshold


def test_a_published_checkpoint_without_controller_state_loads():
    layer = LinearConvSparse(3, 8, 3)
    state = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    layer.load_state_dict(state)
    assert torch.equal(layer.linear_weights, state["linear_weights"])
    ours = LinearConvSparse(3, 8, 3).state_dict()
    del ours["mask"]
    with pytest.raises(RuntimeError, match="mask"):  # what we saved ourselves must be whole
        layer.load_state_dict(ours)


def test_the_published_controller_follows_its_formula():
    layer = LinearConvSparse(3, 32, 3, sparsity=0.5, schedule="published")
    nn.init.constant_(layer.linear_weights, 1.0)
    layer.linear_weights.data[0] = 1e-6  # 1/16 of the coefficients
    train(layer, PUBLISHED_INTERVAL - 1)
    assert layer.threshold == 0 and layer.pruned_fraction == 0
    train(layer, 1)
    first = (2 / (1 + 10 ** (10 * (0 - 0.5))) - 1) * PUBLISHED_STEP  # nothing is pruned by a threshold of 0
    assert layer.pruned_fraction == 0 and layer.threshold.item() == pytest.approx(first, rel=1e-4)
    train(layer, PUBLISHED_INTERVAL)
    second = first + (2 / (1 + 10 ** (10 * (1 / 16 - 0.5))) - 1) * PUBLISHED_STEP
    assert layer.pruned_fraction == 1 / 16 and layer.threshold.item() == pytest.approx(second, rel=1e-4)


def test_schedule_pruning_fits_a_run():
    first, second = LinearConvSparse(3, 32, 3, sparsity=0.4), LinearConvSparse(32, 16, 3, sparsity=0.4)
    model = nn.Sequential(first, nn.ReLU(), second)
    schedule_pruning(model, total_steps=30)
    assert (model[0].prune_begin, model[0].prune_end, model[0].prune_every) == (3, 18, 1)
    for _ in range(30):
        model(torch.randn(1, 3, 8, 8))
    for layer in (model[0], model[2]):
        assert layer.pruned_fraction == pytest.approx(0.4, abs=0.02)
    with pytest.raises(ValueError):
        schedule_pruning(model, 30, begin=0.6, end=0.5)


def test_the_controller_runs_under_torch_compile():
    torch._dynamo.reset()
    layer = LinearConvSparse(3, 32, 3, sparsity=0.5, prune_end=4, prune_every=1)
    compiled = torch.compile(layer, backend="aot_eager")
    for _ in range(4):
        compiled(torch.randn(1, 3, 5, 5)).sum().backward()
    assert layer.steps.item() == 4 and layer.pruned_fraction == 0.5


def test_exports_and_traces_are_of_a_frozen_layer():
    layer = LinearConvSparse(3, 32, 3, sparsity=0.5, prune_end=4, prune_every=1).train()
    torch.export.export(layer, (torch.randn(1, 3, 5, 5),))
    torch.jit.trace(layer, torch.randn(1, 3, 5, 5))
    torch.func.grad(lambda image: layer(image).sum())(torch.randn(1, 3, 5, 5))
    assert layer.steps.item() == 0 and layer.pruned_fraction == 0
