"""What PyTorch's own tests do to nn.Conv2d, done to the layers: its shapes and inputs, the checks of every module."""

import inspect

import pytest
import torch
import torch.nn as nn
from torch.autograd import gradcheck, gradgradcheck

from linearconv import LinearConv
from tests.helpers.layers import computes, prune_half, reference, relative_error, variants

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
                torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
                is_same = memory_format == FORMATS[0] or input.is_contiguous(memory_format=memory_format)
                if is_same and not dtype.is_complex:
                    assert output.stride() == expected.stride(), (geometry, input.shape, input.stride())


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
def test_device_and_dtype_of_the_parameters(variant):
    for dtype in (torch.bfloat16, torch.complex128):
        layer = make(variant, dtype=dtype, device="cpu")
        assert all(parameter.dtype == dtype for parameter in layer.parameters())
        assert layer.conv_weights.abs().max() > 0
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in variant(4, 5, 3).state_dict().values())
    layer = variant(4, 6, 3, device="meta")
    assert layer(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 6, 6, 6)
    layer.to_empty(device="cpu").reset_parameters()
    input = torch.randn(2, 4, 8, 8)
    assert relative_error(layer(input), reference(layer, input)) < 1e-5
    assert all((mask == 1).all() for name, mask in layer.named_buffers() if name == "mask")


def test_skip_init_takes_the_layer_with_int_alpha_f_primary_filters():
    layer = nn.utils.skip_init(LinearConv, 4, 7, 3, alpha=0.4, dtype=torch.float64)
    assert layer.conv_weights.shape == (2, 4, 3, 3) and layer.conv_weights.dtype == torch.float64
    theirs = list(inspect.signature(nn.Conv2d).parameters)
    assert list(inspect.signature(LinearConv).parameters) == [*theirs, "alpha", "compute"]


@variants
def test_repr_begins_as_that_of_conv2d(variant):
    for geometry in GEOMETRIES.values():
        layer = variant(4, **geometry)
        arguments = repr(nn.Conv2d(4, **geometry)).removeprefix("Conv2d").removesuffix(")")
        assert repr(layer).startswith(f"{type(layer).__name__}{arguments}, alpha=0.5, compute='auto'")


@variants
@computes
def test_gradients_of_single_images_by_vmap(variant, compute):
    function, values = functional(make(variant, compute))

    def loss(input, *parameters):
        return function(input, *parameters).tanh().square().sum()

    every = tuple(range(1 + len(values)))
    gradients = torch.func.vmap(torch.func.grad(loss, every), in_dims=(0, *[None] * len(values)))(images(), *values)
    for index, image in enumerate(images()):
        image.requires_grad_()
        expected = torch.autograd.grad(loss(image, *values), (image, *values))
        torch.testing.assert_close([each[index] for each in gradients], list(expected), rtol=1e-4, atol=1e-4)
