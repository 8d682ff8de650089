"""Parameters, FLOPs in two conventions, and multiply-adds at inference of a network.

    flops_paper     the paper's convention, as in its Table 1 (rules of thop 0.0.22, filter generation included)
    flops           the FLOPs that current thop reports; a LinearConv layer counts the multiply-adds of its forward pass
    macs_inference  multiply-adds of convolutions and matrix products, attention included, for each image of a batch

All counts are per image and in eval mode. The model is unchanged.
"""

import copy
import warnings
from math import prod

import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert.calibration import trace_macs
from linearconv_convert.inputs import Call
from linearconv_convert.report import count_macs, count_parameters
from linearconv_sparse import LinearConvSparse


def count(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Return a network's `parameters`, `nonzero_parameters`, `flops_paper`, `flops` and `macs_inference`.

    The network takes one image tensor, with `input_size` (channels, height, width).
    """
    return {
        "parameters": count_parameters(model),
        "nonzero_parameters": count_nonzero_parameters(model),
        "flops_paper": flops_paper(model, input_size),
        "flops": flops(model, input_size),
        "macs_inference": macs_inference(model, input_size),
    }


def count_nonzero_parameters(model: nn.Module) -> int:
    """Return the number of parameters without the coefficients that the masks of LinearConvSparse layers prune."""
    return count_parameters(model) - sum(int((mask == 0).sum()) for mask in _masks(model))


def pruned_share(model: nn.Module) -> dict[str, float]:
    """Return `{"pruned": share}`, the pruned share of all masked coefficients in [0, 1]; `{}` without masks."""
    total = sum(mask.numel() for mask in _masks(model))
    return {"pruned": sum(int((mask == 0).sum()) for mask in _masks(model)) / total} if total else {}


def _masks(model):
    return [layer.mask for layer in model.modules() if isinstance(layer, LinearConvSparse)]


def flops_paper(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the FLOPs of one image by the paper's convention, which reproduces its Table 1.

    Conv2d: out_elements * (kh kw + has_bias) * in_channels // groups (a bias counts in_channels times). BatchNorm2d:
    4 per element. ReLU modules: 1 per element. MaxPool2d: k per output element (not k^2). Linear: (2 in - 1) * out.
    LinearConv: its convolution as above, plus the generation of its filters, where multiplications and additions count
    separately and in_channels is NOT divided by groups. Other modules and functional calls count nothing.
    """
    model, images = _without_values(model, 1, input_size)
    operations = []
    for layer in model.modules():
        layer.register_forward_hook(lambda layer, _, output: operations.append(_paper_operations(layer, output)))
    model.eval()(images)
    return sum(operations)


def _paper_operations(layer, output):
    if isinstance(layer, (nn.Conv2d, LinearConv)):
        per_output = (prod(layer.kernel_size) + (layer.bias is not None)) * layer.in_channels // layer.groups
        generation = 0
        if isinstance(layer, LinearConv):
            filter_size = layer.in_channels * prod(layer.kernel_size)
            factors = [factor for factor in layer.factors() if len(factor)]  # (rows, columns) each
            generation = sum((2 * factor.shape[1] - 1) * len(factor) * filter_size for factor in factors)
        return output.numel() * per_output + generation
    if isinstance(layer, nn.BatchNorm2d):
        return 4 * output.numel()
    if isinstance(layer, nn.ReLU):
        return output.numel()
    if isinstance(layer, nn.MaxPool2d):
        size = layer.kernel_size
        return (size if isinstance(size, int) else prod(size)) * output.numel()
    return (2 * layer.in_features - 1) * output.numel() if isinstance(layer, nn.Linear) else 0


def flops(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the FLOPs that thop reports for one image: multiply-adds, and 4 per element of BatchNorm.

    A LinearConv layer counts the multiply-adds of a forward pass as executed: the convolution with P filters and the
    combination of their feature maps, or the building of all F filters and the convolution with them.
    """
    # Imported here, because --help does not need thop.
    import setuptools  # noqa: F401  provides distutils, which thop needs, on Python 3.12 and later

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # thop compares versions with distutils
        import thop
    model, images = _without_values(model, 1, input_size)
    kinds = {type(layer) for layer in model.modules() if isinstance(layer, LinearConv)}
    total, _ = thop.profile(model, (images,), custom_ops=dict.fromkeys(kinds, _linearconv_rule), verbose=False)
    return int(total)


def _linearconv_rule(layer, _, output):
    building = 0 if layer.combines_maps else layer.coefficients * layer.filter_size
    layer.total_ops += count_macs(layer, output[..., :1, :, :].numel()) + building


def macs_inference(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the multiply-adds of all convolutions and matrix products for each further image of a batch.

    The count is the difference of torch's FlopCounterMode for two images and for one image. Therefore a LinearConv
    layer that combines feature maps counts P K + |A| per output position, and a layer that builds filters counts F K:
    a batch needs the filters only once. Biases, normalisation, activations and pooling count nothing.
    """
    totals = []
    for number in (1, 2):
        empty, images = _without_values(model, number, input_size)
        totals.append(trace_macs(empty, {}, Call((images,), {}, "zeros"))[1])
    return totals[1] - totals[0]


def _without_values(model, number, input_size):
    """A copy of a model, and images for it, with shapes but no values: counting takes neither memory nor time."""
    empty = {id(tensor): tensor.to("meta") for tensor in (*model.parameters(), *model.buffers())}
    example = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return copy.deepcopy(model, empty), torch.zeros(number, *input_size, device="meta", dtype=example.dtype)
