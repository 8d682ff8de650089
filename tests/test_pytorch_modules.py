"""What PyTorch's own tests do to nn.Conv2d, done to the layers: its shapes and inputs, the checks of every module."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

from linearconv import LinearConv
from tests.helpers.layers import VARIANTS, prune_half

# PyTorch's table has the first two, with 4 channels in, 5 out, 3x3 filters, and images of (4, 3, 4), alone and as two.
GEOMETRIES = {
    "plain": dict(out_channels=5, kernel_size=3),
    "same": dict(out_channels=5, kernel_size=3, padding="same"),
    "one filter": dict(out_channels=1, kernel_size=3),
    "pointwise": dict(out_channels=5, kernel_size=1),
    "pointwise strided": dict(out_channels=5, kernel_size=1, stride=2, bias=False),
    "reflect": dict(out_channels=5, kernel_size=3, padding=1, padding_mode="reflect"),
    "depthwise": dict(out_channels=8, kernel_size=3, groups=4),
}
FORMATS = (torch.contiguous_format, torch.channels_last)
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
computes = pytest.mark.parametrize("compute", ("filters", "features"))
geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def make(variant, compute="auto", in_channels=4, **options):
    torch.manual_seed(0)
    return prune_half(variant(in_channels, **(GEOMETRIES["plain"] | options), compute=compute))


def images(dtype=torch.float32, channels=4, **options):
    return torch.randn(2, channels, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(1), **options)


def inputs(dtype):
    """A batch, one image and no image, in both memory formats; every other column, pixel and channel of more."""
    for memory_format in FORMATS:
        batch = images(dtype).contiguous(memory_format=memory_format)
        wide = torch.randn(2, 8, 8, 10, dtype=dtype).contiguous(memory_format=memory_format)
        yield from (batch, batch[:1], batch[0], batch[:0])
        yield from (wide[:, :4, :4, ::2], wide[:, :4, ::2, ::2], wide[:, ::2, :4, :5], wide[:1, :4, :4, :5].mT)


def close(one, other):
    """Both are a tensor, or tensors."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# ---- forward --------------------------------------------------------------------------------------------------------


@variants
@computes
@pytest.mark.parametrize("dtype", (torch.float32, torch.complex64), ids=str)
def test_output_and_memory_format_equal_those_of_the_fused_convolution(variant, compute, dtype):
    for geometry in GEOMETRIES.values():
        for memory_format in FORMATS:
            layer = make(variant, compute, **geometry, dtype=dtype).to(memory_format=memory_format).eval()
            conv = layer.fuse()
            for input in inputs(dtype):
                expected, output = conv(input), layer(input)
                close(output, expected)
                is_same = memory_format == FORMATS[0] or input.is_contiguous(memory_format=memory_format)
                if is_same and not dtype.is_complex:
                    assert output.stride() == expected.stride(), (geometry, input.shape, input.stride())


# ---- gradients ------------------------------------------------------------------------------------------------------


def functional(layer):
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(input, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (input,))

    return function, values


@variants
@computes
@pytest.mark.parametrize("dtype, memory_format", ((torch.float64, FORMATS[1]), (torch.complex128, FORMATS[0])), ids=str)
def test_gradients_and_second_gradients_batched_too(variant, compute, dtype, memory_format):
    padded = dict(kernel_size=3, padding=1, stride=(2, 1), bias=False)
    for geometry in (GEOMETRIES["plain"], GEOMETRIES["pointwise strided"], padded, dict(out_channels=4, groups=2)):
        layer = make(variant, compute, **geometry, dtype=dtype).to(memory_format=memory_format).eval()
        function, values = functional(layer)
        input = images(dtype)[:, :, :3].contiguous(memory_format=memory_format).requires_grad_()
        forward = dict(check_forward_ad=True, check_batched_forward_grad=not dtype.is_complex)
        assert gradcheck(function, (input, *values), check_batched_grad=True, fast_mode=True, **forward)
        assert gradgradcheck(function, (input, *values), check_batched_grad=True, fast_mode=True)


@variants
@computes
def test_gradients_of_strided_inputs_parameters_and_gradients(variant, compute):
    layer = make(variant, compute)
    input, weights = images().requires_grad_(), torch.randn(2, 5, 2, 3)
    expected = torch.autograd.grad(layer(input), (input, *layer.parameters()), weights)
    for parameter in layer.parameters():
        parameter.data = strided(parameter.data)
    for grad in (strided(weights), weights.contiguous(memory_format=torch.channels_last), weights.mT.contiguous().mT):
        again = strided(input.detach()).requires_grad_()
        close(torch.autograd.grad(layer(again), (again, *layer.parameters()), grad), expected)
    summed = torch.autograd.grad(layer(input).sum(), input)[0]  # the gradient of a sum is one number, expanded
    close(summed, torch.autograd.grad(layer(input), input, torch.ones(2, 5, 2, 3))[0])


def strided(tensor):
    """The same values, every other one in memory."""
    return torch.stack((tensor, tensor), dim=-1).flatten(-2)[..., ::2]


# ---- construction, saving, moving -----------------------------------------------------------------------------------


@variants
def test_device_and_dtype_of_the_parameters(variant):
    for dtype in (torch.bfloat16, torch.float64, torch.complex64, torch.complex128):
        layer = make(variant, dtype=dtype, device="cpu")
        assert all(parameter.dtype == dtype for parameter in layer.parameters())
        assert layer.conv_weights.abs().max() > 0
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in variant(4, 5, 3).state_dict().values())
    layer = variant(4, 5, 3, device="meta").to_empty(device="cpu")
    assert not any(tensor.is_meta for tensor in layer.state_dict().values())


def test_skip_init_takes_the_layer():
    layer = nn.utils.skip_init(LinearConv, 4, 5, 3, alpha=0.4, dtype=torch.float64)
    assert layer.conv_weights.shape == (2, 4, 3, 3) and layer.conv_weights.dtype == torch.float64
    theirs = list(inspect.signature(nn.Conv2d).parameters)
    assert list(inspect.signature(LinearConv).parameters) == [*theirs, "alpha", "compute"]


@variants
@geometries
def test_repr_begins_as_that_of_conv2d(variant, geometry):
    layer = variant(4, **geometry)
    arguments = repr(nn.Conv2d(4, **geometry)).removeprefix("Conv2d").removesuffix(")")
    assert repr(layer).startswith(f"{type(layer).__name__}{arguments}, alpha=0.5, compute='auto'")


@variants
@computes
def test_copies_and_files_hold_the_same_layer(variant, compute):
    layer, input = make(variant, compute), images()
    with torch.no_grad():
        expected = layer(input)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for again in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert repr(again) == repr(layer)
            assert torch.equal(again(input), expected)


# ---- pruning and transforms -----------------------------------------------------------------------------------------


@computes
@pytest.mark.parametrize("name", ("conv_weights", "linear_weights"))
def test_pruning_by_magnitude(compute, name):
    layer, input = make(LinearConv, compute), images()
    prune.l1_unstructured(layer, name, 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(input).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        output = layer(input)
        pruned = layer.get_parameter(f"{name}_orig") * layer.get_buffer(f"{name}_mask")
        assert (pruned == 0).sum() == round(0.5 * pruned.numel())
        parts = {"conv_weights": layer.conv_weights, "linear_weights": layer.linear_weights, name: pruned}
        secondary = torch.einsum("sp,pchw->schw", parts["linear_weights"], parts["conv_weights"])
        close(output, F.conv2d(input, torch.cat((parts["conv_weights"], secondary)), layer.bias))
    prune.remove(layer, name)
    with torch.no_grad():
        close(layer(input), output)


@variants
@computes
def test_transforms_agree_with_those_of_a_convolution(variant, compute):
    layer = make(variant, compute)
    function, values = functional(layer)
    everything = images()[:, :, :3, :3], *values
    every = tuple(range(len(everything)))

    def convolve(input, *parameters):
        replaced = copy.copy(layer)
        replaced._parameters = dict(zip(layer._parameters, parameters, strict=True))
        return F.conv2d(input, replaced.weight, parameters[-1])

    for transform in (torch.func.jacrev, torch.func.jacfwd):
        close(transform(function, every)(*everything), transform(convolve, every)(*everything))
    loss, expected = (lambda *tensors, f=f: f(*tensors).tanh().square().sum() for f in (function, convolve))
    close(torch.func.grad(loss, every)(*everything), torch.func.grad(expected, every)(*everything))
    close(torch.func.hessian(loss)(*everything), torch.func.hessian(expected)(*everything))


# ---- graphs ---------------------------------------------------------------------------------------------------------


def network(variant, **options):
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(make(variant, **options), nn.ReLU()), nn.Flatten())


@variants
@computes
def test_fx_traces_through_the_layer(variant, compute):
    model, input = network(variant, compute=compute).eval(), images()
    traced = torch.fx.symbolic_trace(model)
    for graph in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), torch.fx.symbolic_trace(traced)):
        with torch.no_grad():
            close(graph(input), model(input))
    extracted = create_feature_extractor(model, {"1.0": "maps", "1": "after"})(input)
    close(extracted["maps"], model[1][0](model[0](input)))
    close(extracted["after"], extracted["maps"].relu())


@variants
@computes
def test_make_fx_reads_the_parameters_at_every_pass(variant, compute):
    layer, input = make(variant, compute).eval(), images()
    with torch.no_grad():
        graph = make_fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)(input)
        close(graph(input), layer(input))
        for parameter in layer.parameters():
            parameter.mul_(1.5)
        close(graph(input), layer(input))
