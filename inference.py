"""What a layer keeps between passes without gradients: the tensors it makes of its parameters, and how it is run.

Inference of one image is over in microseconds a layer, so everything that is decided or made once is kept: filters or
coefficients (under autocast in its lower precision), and for each shape of input the sequence of operations to run.
"""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._C import _is_any_autocast_enabled

from feature_maps import apply_factors, combine, combine_rows, lie_as_rows, multiply_rows

MOST_SHAPES = 64  # inputs of ever new sizes must not fill the memory
MOST_JOINED = 64  # primary filters: up to here multiplying with I costs less than joining maps


class Inference:
    """A layer's evaluation without gradients, valid while `is_current`.

    A change of a parameter or buffer is seen by its version counter, storage and identity.
    """

    @classmethod
    def of(cls, layer):
        """For a layer, or None where its tensors do not show their changes."""
        groups = [group for group in (layer._parameters, layer._buffers) if group]
        tensors = [tensor for group in groups for tensor in group.values() if tensor is not None]
        # Inference tensors count no versions; tensor subclasses may hide their storage; meta tensors have none.
        # The replicas of nn.DataParallel have no parameters, but plain tensors for attributes.
        if not layer._parameters or any(map(_hides_its_changes, tensors)):
            return None
        return cls(layer, groups, tensors[0].device.type)

    def __init__(self, layer, groups, device):
        self.parameters = layer._parameters
        self.seen = [(group, len(group), [_look_at(tensor) for tensor in group.values()]) for group in groups]
        self.memory = [tensor.detach() for group in groups for tensor in group.values() if tensor is not None]
        self.device = device
        self.made = {}  # by what is made and in which precision
        self.runs = {}  # functions of an input, by its shape, strides and precision

    def is_current(self, layer):
        if layer._parameters is not self.parameters:
            return False  # a replica of the layer that it was made for, as nn.DataParallel makes them
        for group, size, seen in self.seen:
            if len(group) != size:
                return False
            for tensor, (then, version, address) in zip(group.values(), seen):  # noqa: B905 (strict takes longer)
                if tensor is not then:
                    return False
                if tensor is not None and (tensor._version != version or tensor.data_ptr() != address):
                    return False
        return True

    def __call__(self, layer, input):
        lower = torch.get_autocast_dtype(self.device) if _is_any_autocast_enabled() and self._lowers() else None
        key = (input.shape, input.stride(), lower, layer.compute)
        run = self.runs.get(key)
        if run is None:
            if len(self.runs) >= MOST_SHAPES:
                self.runs.clear()
            run = self.runs[key] = self._prepare(layer, input, lower)
        return run(input)

    def _lowers(self):
        return torch.is_autocast_enabled(self.device)

    def _prepare(self, layer, input, lower):
        if layer.padding_mode != "zeros":
            pad = partial(F.pad, pad=layer._pad_widths, mode=layer.padding_mode)
            run = self._prepare_padded(layer, pad(input), lower)
            return lambda input: run(pad(input))
        return self._prepare_padded(layer, input, lower)

    def _prepare_padded(self, layer, padded, lower):
        features = layer._mode_for(padded) == "features"
        kind = type(layer)
        weight, bias, *parts = self._make(kind._parts if features else kind._filters_and_bias, layer, lower)
        if layer._is_pointwise and lie_as_rows(padded) and layer.stride == (1, 1):
            convolve = partial(multiply_rows, weight=weight.flatten(1), bias=bias)
        elif layer._is_pointwise and lie_as_rows(padded):
            convolve = _strided_product(weight.flatten(1), bias, *layer.stride)
        else:
            convolve = _convolution(weight, bias, layer._conv_arguments(), lower is None and padded.dim() == 4)
        if not features:
            return convolve
        shift, *factors = parts
        if not lie_as_rows(convolve(padded)):
            return lambda padded: combine(convolve(padded), factors, shift)
        if layer.primary_channels <= MOST_JOINED:
            joined, joined_shift = self._make(_join, layer, lower)
            return lambda padded: multiply_rows(convolve(padded), joined, joined_shift)
        return lambda padded: combine_rows(convolve(padded), factors, shift)

    def _make(self, make, layer, lower):
        if (make, lower) not in self.made:
            # Normal tensors made in full precision, whatever inference or autocast mode the first caller was in.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device, enabled=False):
                self.made[make, lower] = [_round(tensor, lower) for tensor in make(layer)]
        return self.made[make, lower]


def _strided_product(weight, bias, down, across):
    """A 1x1 convolution with a stride as a product of the rows that it looks at."""

    def convolve(padded):
        seen = padded[:, :, ::down, ::across].contiguous(memory_format=torch.channels_last)
        return multiply_rows(seen, weight, bias)

    return convolve


def _convolution(weight, bias, arguments, direct):
    """A function of the input; `direct` where it is a batch and no autocast is on."""
    stride, padding, dilation, groups = arguments
    if direct and isinstance(padding, tuple):  # saves F.conv2d's way to the same operation, some microseconds

        def convolve(padded):
            return torch.convolution(padded, weight, bias, stride, padding, dilation, False, (0, 0), groups)
    else:

        def convolve(padded):
            return F.conv2d(padded, weight, bias, stride, padding, dilation, groups)

    return convolve


def _hides_its_changes(tensor):
    return type(tensor) not in (nn.Parameter, torch.Tensor) or tensor.is_inference() or tensor.is_meta


def _look_at(tensor):
    """What shows a change of a tensor, as long as its memory is held: no other one can have the same address."""
    return (None, 0, 0) if tensor is None else (tensor, tensor._version, tensor.data_ptr())


def _join(layer):
    """[I ; A] and [0 ; shift], which take primary maps to all maps in one matrix product."""
    _, _, shift, *factors = layer._parts()
    product = apply_factors(factors[:-1], factors[-1])
    identity = torch.eye(product.shape[1], dtype=product.dtype, device=product.device)
    return torch.cat((identity, product)), None if shift is None else F.pad(shift, (product.shape[1], 0))


def _round(tensor, lower):
    return tensor.to(lower) if lower and tensor is not None and tensor.dtype == torch.float32 else tensor
