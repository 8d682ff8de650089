"""Combining feature maps: what is kept for the backward pass, and that it is right whatever comes after the layer."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn as nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import linearconv_features
from benchmarks.measuring import kept_bytes
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from tests.helpers.layers import VARIANTS, prune_half

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@formats
@pytest.mark.parametrize("conv", (LinearConv, partial(LinearConvLowRank, rank=10)), ids=("full", "lowrank"))
@pytest.mark.parametrize("batch_norm, limit", ((True, 1.05), (False, 1.3)))
def test_little_more_is_kept_than_by_a_plain_convolution(memory_format, conv, batch_norm, limit):
    def block(make):
        after = (nn.BatchNorm2d(64), nn.ReLU(inplace=True)) if batch_norm else (nn.ReLU(inplace=True),)
        return nn.Sequential(make(64, 64, 3, padding=1), *after).to(memory_format=memory_format)

    input = torch.randn(8, 64, 16, 16).contiguous(memory_format=memory_format).requires_grad_()
    dense = block(nn.Conv2d)
    limit *= kept_bytes(lambda: dense(input).sum(), dense)
    ours = block(partial(conv, compute="features"))
    for _ in range(3):  # the first pass does not know yet what follows
        assert kept_bytes(lambda: ours(input).sum(), ours) <= limit
    assert ours[0]._kept.overwritten == (not batch_norm)


@formats
@variants
@pytest.mark.parametrize("dtype, limit", ((torch.float64, 1e-10), (torch.float32, 1e-4)))
@pytest.mark.parametrize("after", ((), (nn.ReLU(True),), (nn.BatchNorm2d(10), nn.ReLU(True))), ids=str)
@pytest.mark.parametrize("mkl_is_slow", (False, True), ids=("matrix products", "convolutions"))
def test_gradients_equal_those_of_made_filters_whatever_follows(
    monkeypatch, memory_format, variant, dtype, limit, after, mkl_is_slow
):
    monkeypatch.setattr(linearconv_features, "MKL_IS_SLOW", mkl_is_slow)
    torch.manual_seed(0)
    features = prune_half(variant(6, 10, 3, padding=1, compute="features", dtype=dtype)).to(memory_format=memory_format)
    filters = variant(6, 10, 3, padding=1, compute="filters", dtype=dtype)
    filters.load_state_dict(features.state_dict())
    after = nn.Sequential(*after).to(dtype)
    for _ in range(3):
        input = torch.randn(4, 6, 7, 7, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
        weights = torch.randn(4, 10, 7, 7, dtype=dtype)
        results = []
        for layer in (features, filters):
            output = after(layer(input))
            results.append((output, *torch.autograd.grad((output * weights).sum(), (input, *layer.parameters()))))
        scale = max(other.abs().max().item() for other in results[1])  # a bias before BatchNorm has none but rounding
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=limit, atol=limit * scale)


@formats
@variants
def test_gradients_of_gradients_where_the_output_is_overwritten(memory_format, variant):
    torch.manual_seed(0)
    layer = prune_half(variant(3, 6, 3, compute="features", dtype=torch.float64)).to(memory_format=memory_format)
    values = tuple(layer.parameters())

    def squared_gradients(compute, again):
        layer.compute, layer._kept.overwritten = compute, again
        input = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        output = layer(input.contiguous(memory_format=memory_format).requires_grad_()).mul_(2).tanh_()
        first = torch.autograd.grad(output.square().sum(), values, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), values)

    expected = squared_gradients("filters", False)
    for again in (False, True):
        for one, other in zip(squared_gradients("features", again), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@formats
@variants
def test_frozen_parts_get_no_gradient_and_disturb_no_other(memory_format, variant):
    torch.manual_seed(0)
    layer = variant(4, 6, 3, compute="features").to(memory_format=memory_format)
    input = torch.randn(2, 4, 6, 6).contiguous(memory_format=memory_format)
    layer(input).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    for frozen in expected:
        layer.zero_grad()
        layer.requires_grad_(True).get_parameter(frozen).requires_grad_(False)
        layer(input).square().sum().backward()
        for name, parameter in layer.named_parameters():
            if name == frozen:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4)
    layer.requires_grad_(False).conv_weights.requires_grad_(True)  # no coefficient wants a gradient
    layer(input).square().sum().backward()


def test_coefficients_changed_before_the_backward_pass_are_an_error():
    layer = LinearConv(4, 6, 3, compute="features")
    output = layer(torch.randn(2, 4, 6, 6))
    with torch.no_grad():
        layer.linear_weights.mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        output.sum().backward()


@formats
def test_offloading_and_checkpointing_of_activations(memory_format):
    torch.manual_seed(0)
    model = nn.Sequential(LinearConv(4, 8, 3, padding=1), nn.ReLU(True), LinearConv(8, 8, 3), nn.BatchNorm2d(8))
    model.to(memory_format=memory_format)
    input = torch.randn(2, 4, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
    sources = (input, *model.parameters())
    expected = torch.autograd.grad(model(input).square().sum(), sources)

    def hooks_that_keep_the_tensor():
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)

    def gradients(context, run):
        for layer in (model[0], model[2]):
            layer._kept.overwritten = False  # as in the first pass
        with context():
            output = run(input)
        return torch.autograd.grad(output.square().sum(), sources)

    checkpointed = partial(checkpoint, model, use_reentrant=False)
    for context, run in (
        (torch.autograd.graph.save_on_cpu, model),
        (hooks_that_keep_the_tensor, model),
        (nullcontext, checkpointed),
    ):
        for one, other in zip(gradients(context, run), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_forward_mode_differentiation():
    layer = LinearConv(3, 6, 3, compute="features", dtype=torch.float64)
    input, tangent = torch.randn(2, 1, 3, 5, 5, dtype=torch.float64)
    with forward_ad.dual_level():
        output = layer(forward_ad.make_dual(input, tangent))
        derivative = forward_ad.unpack_dual(output).tangent
    expected = layer(tangent) - layer(torch.zeros_like(tangent))
    torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-10)


@formats
def test_training_under_autocast_follows_full_precision(memory_format):
    torch.manual_seed(0)
    layer = LinearConvLowRank(8, 16, 3, rank=3, compute="features").to(memory_format=memory_format)
    input = torch.randn(4, 8, 6, 6).contiguous(memory_format=memory_format)
    expected = torch.autograd.grad(layer(input).square().sum(), tuple(layer.parameters()))
    for after in (nn.Identity(), nn.ReLU(inplace=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = after(layer(input))
        gradients = torch.autograd.grad(output.float().square().sum(), tuple(layer.parameters()))
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        if isinstance(after, nn.Identity):
            for one, other in zip(gradients, expected, strict=True):
                assert (one - other).norm() < 0.03 * other.norm()
