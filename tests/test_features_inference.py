"""Passes without gradients: every sequence of operations that may be kept gives what the slow way gives."""

from functools import partial

import pytest
import torch
import torch.nn as nn

import linearconv_features
from linearconv import LinearConv
from linearconv_lowrank import LinearConvLowRank
from tests.helpers.layers import VARIANTS, prune_half, reference, relative_error

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
FORMATS = (torch.contiguous_format, torch.channels_last)


@variants
@pytest.mark.parametrize("dtype, limit", ((torch.float64, 1e-10), (torch.float32, 1e-4)))
@pytest.mark.parametrize("most_rows", (0, 10**6), ids=("convolutions", "matrix products"))
def test_every_way_equals_an_independent_computation(monkeypatch, variant, dtype, limit, most_rows):
    monkeypatch.setattr(linearconv_features, "MOST_ROWS", most_rows)
    monkeypatch.setattr(linearconv_features, "MKL_IS_SLOW", False)
    torch.manual_seed(0)
    geometries = (
        dict(kernel_size=1),
        dict(kernel_size=1, bias=False),
        dict(kernel_size=1, stride=2),
        dict(kernel_size=1, padding=1),
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding="same", bias=False),
        dict(kernel_size=3, padding=1, padding_mode="reflect"),
        dict(kernel_size=3, groups=2),
    )
    for geometry in geometries:
        for compute in ("filters", "features"):
            for memory_format in FORMATS:
                layer = prune_half(variant(6, 10, **geometry, compute=compute, dtype=dtype)).eval()
                layer.to(memory_format=memory_format)
                input = torch.randn(3, 6, 7, 5, dtype=dtype).contiguous(memory_format=memory_format)
                with torch.inference_mode():
                    for images in (input, input[:1], input[0], input[:0], input):
                        output = layer(images)
                        expected = reference(layer, images)
                        assert output.shape == expected.shape
                        assert not len(images) or relative_error(output, expected) < limit
                    assert layer(input).is_contiguous(memory_format=memory_format)


def test_many_maps_are_multiplied_as_rows_where_that_is_fast(monkeypatch):
    few, many = (torch.empty(count, 8, 4, 4).to(memory_format=torch.channels_last) for count in (2, 256))
    for is_slow, expected in ((False, True), (True, False)):
        monkeypatch.setattr(linearconv_features, "MKL_IS_SLOW", is_slow)
        assert linearconv_features.lie_as_rows(few) and linearconv_features.lie_as_rows(many.bfloat16())
        assert linearconv_features.lie_as_rows(many) == expected


@pytest.mark.parametrize("conv", (LinearConv, partial(LinearConvLowRank, rank=1)), ids=("full", "lowrank"))
@pytest.mark.parametrize("kernel_size", (1, 3))
@pytest.mark.parametrize("compute", ("filters", "features"))
def test_one_layer_in_full_and_in_lower_precision_in_turns(conv, kernel_size, compute):
    torch.manual_seed(0)
    layer = conv(8, 16, kernel_size, compute=compute).eval()
    input = torch.randn(2, 8, 5, 5)
    expected = reference(layer, input)
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(layer(input), expected) < 1e-5
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = layer(input)
            assert output.dtype == torch.bfloat16
            assert relative_error(output, expected) < 0.03


@pytest.fixture
def made(monkeypatch):
    """Names of what layers made of their parameters, in order."""
    names = []
    for name in ("_filters_and_bias", "_parts"):
        make = getattr(LinearConv, name)
        monkeypatch.setattr(LinearConv, name, lambda layer, make=make, name=name: names.append(name) or make(layer))
    return names


def test_another_compute_mode_takes_effect_at_once(made):
    layer, input = LinearConv(8, 16, 1, compute="features").eval(), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        for compute in ("features", "filters", "features"):
            layer.compute = compute
            layer(input)
    assert made == ["_parts", "_filters_and_bias"]


@pytest.mark.parametrize("compute", ("filters", "features"))
def test_eval_before_every_pass_and_ever_new_sizes_make_nothing_anew(made, compute):
    layer = LinearConv(8, 16, 3, compute=compute)
    with torch.no_grad():
        for side in range(3, 38):
            layer.eval()
            layer(torch.randn(1, 8, side, side))
    assert len(made) == 1


@pytest.mark.parametrize("optimizer", (torch.optim.Adam, torch.optim.SGD))
@pytest.mark.parametrize("compute", ("filters", "features"))
def test_the_step_of_a_fused_optimizer_is_noticed_in_eval_mode(optimizer, compute):
    layer, input = LinearConv(3, 8, 3, compute=compute).eval(), torch.randn(2, 3, 5, 5)
    optimizer = optimizer(layer.parameters(), lr=0.1, fused=True)  # counts no versions
    layer(input).square().sum().backward()
    with torch.no_grad():
        layer(input)
        optimizer.step()
        assert relative_error(layer(input), reference(layer, input)) < 1e-5


@pytest.mark.parametrize("norm", (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm))
def test_a_parametrized_layer_is_read_at_every_pass(norm):
    layer, input = norm(LinearConv(3, 8, 3), "conv_weights").eval(), torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        layer(input)
        layer.parametrizations.conv_weights[0].eval()
        for parameter in layer.parametrizations.conv_weights.parameters():
            parameter.normal_()
        expected = nn.functional.conv2d(input, layer.weight, layer.bias)
        torch.testing.assert_close(layer(input), expected)
        name = next(
            iter(dict(layer.parametrizations.conv_weights.named_parameters(prefix="parametrizations.conv_weights")))
        )
        doubled = {name: 2 * layer.get_parameter(name), "bias": torch.zeros(8)}
        with torch.random.fork_rng():
            output = torch.func.functional_call(layer, doubled, (input,))
    assert not torch.allclose(output, expected)


def test_fake_tensors_leave_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer, input = LinearConv(3, 8, 3).eval(), torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert layer(torch.randn(1, 3, 5, 5)).shape == (1, 8, 3, 3)
        assert relative_error(layer(input), reference(layer, input)) < 1e-5


def test_tensors_that_do_not_show_their_changes_are_read_at_every_pass():
    with torch.inference_mode():
        layer = LinearConv(3, 8, 3).eval()
        input = torch.randn(1, 3, 5, 5)
        layer(input)
        layer.conv_weights.mul_(2)
        assert relative_error(layer(input), reference(layer, input)) < 1e-5


def test_a_swapped_parameter_is_noticed():
    layer, input = LinearConv(3, 8, 3).eval(), torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        before = layer(input)
        doubled = {"conv_weights": 2 * layer.conv_weights, "bias": layer.bias * 2}
        torch.testing.assert_close(torch.func.functional_call(layer, doubled, (input,)), 2 * before)
        torch.testing.assert_close(layer(input), before)
        layer.bias = None
        torch.testing.assert_close(layer(input), nn.functional.conv2d(input, layer.weight))


def test_a_replica_does_not_run_with_the_tensors_of_its_original():
    layer, input = LinearConv(3, 8, 3).eval(), torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        before = layer(input)
        replica = layer._replicate_for_data_parallel()  # as nn.DataParallel does; parameters become attributes
        for name, parameter in layer.named_parameters():
            setattr(replica, name, 2 * parameter if name in ("conv_weights", "bias") else parameter.detach())
        torch.testing.assert_close(replica(input), 2 * before)
        torch.testing.assert_close(layer(input), before)
