"""The layers: what they compute, how they compare with nn.Conv2d, and that a change is seen in the next pass."""

import re
from functools import partial

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from linearconv_rankratio import LinearConvRankRatio
from tests.helpers.layers import computes, explicit_filters, prune_half, reference, relative_error, variants

GEOMETRIES = {
    "3x3": dict(kernel_size=3, padding=1),
    "1x1": dict(kernel_size=1),
    "5x3 stride (2, 1)": dict(kernel_size=(5, 3), stride=(2, 1), padding=(2, 0)),
    "dilated": dict(kernel_size=3, dilation=(2, 3), padding=3),
    "same": dict(kernel_size=(4, 3), padding="same"),
    "valid": dict(kernel_size=3, padding="valid"),
    "reflect": dict(kernel_size=3, padding=(1, 2), padding_mode="reflect"),
    "circular same": dict(kernel_size=(3, 5), padding="same", padding_mode="circular"),
    "replicate strided": dict(kernel_size=3, stride=2, padding=1, padding_mode="replicate", bias=False),
    "grouped": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=3, padding=1, groups=6, bias=False),
}


@variants
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@computes
def test_the_output_equals_an_independent_float64_computation(variant, geometry, compute):
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        torch.manual_seed(0)
        layer = prune_half(variant(6, 12, **geometry, dtype=dtype, compute=compute)).eval()
        input = torch.randn(2, 6, 11, 9, dtype=dtype)
        output = layer(input)
        assert output.dtype == dtype
        assert relative_error(output, reference(layer, input)) < limit
        assert relative_error(layer.weight, explicit_filters(layer)) < limit


@variants
def test_parameters_have_the_published_names_and_shapes(variant):
    layer = variant(8, 14, 3)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    rank = 3 if isinstance(layer, LinearConvRankRatio) else 2  # 3 = int(7 * 0.5)
    factors = {"linear_weights": (7, 7)}
    if isinstance(layer, LinearConvLowRank):
        factors = {"column_weights": (7, rank), "row_weights": (rank, 7)}
    assert shapes == {"conv_weights": (7, 8, 3, 3), "bias": (14,)} | factors


@variants
@pytest.mark.parametrize("wrong", (dict(out_channels=5, groups=2), dict(padding="same", stride=2)), ids=str)
def test_arguments_are_refused_where_conv2d_refuses_them(variant, wrong):
    arguments = dict(in_channels=4, out_channels=4, kernel_size=3) | wrong
    with pytest.raises(ValueError) as theirs:
        nn.Conv2d(**arguments)
    with pytest.raises(ValueError) as ours:
        variant(**arguments)
    assert str(ours.value) == str(theirs.value)


@variants
def test_fuse_gives_the_equivalent_conv2d(variant):
    layer, input = prune_half(variant(4, 6, 3, padding="same", padding_mode="circular")).eval(), torch.randn(2, 4, 7, 7)
    layer.conv_weights.requires_grad_(False)
    before = torch.get_rng_state()
    conv = layer.fuse()
    assert torch.equal(before, torch.get_rng_state())  # no random number is spent on it
    assert type(conv) is nn.Conv2d and not conv.training and not conv.weight.requires_grad
    expected = layer(input).clone()
    torch.testing.assert_close(conv(input), expected, rtol=1e-5, atol=1e-5)
    conv.weight.zero_()
    torch.testing.assert_close(layer(input), expected)  # no memory is shared


@computes
def test_initial_distributions_are_the_published_ones(compute):
    torch.manual_seed(0)
    layer = LinearConvLowRank(64, 256, 3, rank=64, compute=compute)
    bound = (6 / (64 * 9 + 128 * 9)) ** 0.5  # Xavier uniform on (P, C, kh, kw)
    assert 0.99 * bound < layer.conv_weights.abs().max() <= bound
    assert layer.conv_weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    for parameter in (layer.column_weights, layer.row_weights, layer.bias):
        assert 0.095 < parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.15)


@variants
@pytest.mark.parametrize("shape", (dict(out_channels=1), dict(out_channels=6, alpha=1)), ids=str)
@computes
def test_without_secondary_filters_the_layer_is_a_plain_convolution(variant, shape, compute):
    layer = variant(4, kernel_size=3, compute=compute, **shape)
    conv, input = nn.Conv2d(4, layer.out_channels, 3), torch.randn(2, 4, 6, 6)
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in conv.parameters())
    layer(input).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())  # as DistributedDataParallel needs
    conv.load_state_dict({"weight": layer.conv_weights, "bias": layer.bias})
    torch.testing.assert_close(layer(input), conv(input))


def test_auto_combines_feature_maps_where_that_is_expected_to_be_faster():
    assert LinearConv(64, 64, 3).combines_maps
    assert not LinearConv(3, 64, 3).combines_maps  # a stem: concatenation costs more than convolving three channels
    assert not LinearConvLowRank(64, 128, 1).combines_maps  # fewer multiply-adds, but more memory traffic
    assert not LinearConv(64, 64, 3, groups=2, compute="features").combines_maps
    assert not LinearConv(64, 64, 3, compute="filters").combines_maps
    assert LinearConv(3, 64, 3, compute="features").combines_maps


@pytest.mark.parametrize("wrong", (dict(shape=(2, 5, 9, 9)), dict(stride=0), dict(shape=(2, 4, 2, 2))), ids=str)
@computes
def test_wrong_input_raises_the_error_of_conv2d(wrong, compute):
    shape, stride = wrong.get("shape", (2, 4, 9, 9)), wrong.get("stride", 1)
    texts = []
    for layer in (nn.Conv2d(4, 4, 3, stride=stride), LinearConv(4, 4, 3, stride=stride, compute=compute)):
        with pytest.raises(RuntimeError) as error:
            layer(torch.randn(shape))
        texts.append(re.sub(r"\[[24], 4, 3, 3\]", "[weight]", str(error.value)))  # P = 2 filters or all four
    assert texts[0] == texts[1]


def _edit_shared_memory(layer, input):
    layer.conv_weights.detach().numpy()[:] += 1  # another library does not count the version up


def _parametrize(layer, input):
    parametrize.register_parametrization(layer, "conv_weights", nn.Softsign())


@variants
@pytest.mark.parametrize("change", (_edit_shared_memory, _parametrize))
@computes
def test_the_next_pass_sees_every_change(variant, change, compute):
    layer = prune_half(variant(4, 6, 3, compute=compute)).eval()
    input = torch.randn(2, 4, 6, 6)
    with torch.inference_mode():
        before = layer(input)
    change(layer, input)
    with torch.inference_mode():
        after = layer(input)
    assert relative_error(after, reference(layer, input)) < 1e-5
    assert not torch.allclose(before, after)


@variants
@computes
def test_works_under_autocast(variant, compute):
    layer, input = variant(8, 16, 3, compute=compute), torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(input)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert relative_error(output, reference(layer, input)) < 0.03


@variants
@computes
def test_works_under_trace_export_fx_compile_and_checkpointing(variant, compute):
    torch._dynamo.reset()
    layer, input = prune_half(variant(4, 6, 3, compute=compute)), torch.randn(2, 4, 7, 7)
    exported, traced = torch.export.export(layer, (input,)).module(), torch.fx.symbolic_trace(nn.Sequential(layer))
    for program in (torch.jit.trace(layer, input), exported, traced):
        torch.testing.assert_close(program(input), layer(input), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(layer(input).square().sum(), layer.parameters())
    for function in (torch.compile(layer, backend="aot_eager"), partial(checkpoint, layer, use_reentrant=False)):
        output = function(input)
        torch.testing.assert_close(output, layer(input), rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(output.square().sum(), layer.parameters())
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)
