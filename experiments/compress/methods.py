"""Ways to make a trained network smaller: the variants of LinearConv, and what else there is for as many parameters."""

import copy
from collections.abc import Callable
from math import prod

import torch
import torch.nn as nn

from baselines.drop_in import like
from linearconv import LinearConv
from linearconv_convert.surgery import layers_of, replace
from linearconv_variants import Variant
from training.counting import count_parameters

HALF = "full rank, alpha 0.5"  # the other ways get as many parameters as this one
CONVERSIONS = {
    "full rank, alpha 0.25": Variant("rank", alpha=0.25),
    HALF: Variant("rank"),
    "full rank, alpha 0.75": Variant("rank", alpha=0.75),
    "half rank": Variant("rank", rank=0.5),
    "rank 10": Variant("lowrank"),
    "rank 10, alpha 0.75": Variant("lowrank", alpha=0.75),
    "half of A pruned": Variant("sparse", sparsity=0.5),
}
FROM_SCRATCH = (HALF, "rank 10", "half of A pruned")
CALIBRATED = (HALF, "full rank, alpha 0.25", "rank 10")
BUDGETED = (HALF, "full rank, alpha 0.25")  # also with as many parameters by budget
BISECTIONS = 12
RANK_STEPS = 256  # that ranks are chosen from


def truncated_svd(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Return the network with two convolutions, to r and by 1x1 to F channels, for each one that is a LinearConv in
    `small`; of as many parameters: r (K + F) of P K + (F - P) P."""

    def factorise(layer, ours):
        weight = layer.weight.detach()
        filters, size = len(weight), weight[0].numel()
        rank = max(1, _weights(ours) // (filters + size))
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        arguments = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        first = nn.Conv2d(layer.in_channels, rank, *arguments, bias=False)
        second = nn.Conv2d(rank, filters, 1, bias=layer.bias is not None)
        with torch.no_grad():
            first.weight.copy_((values[:rank, None].sqrt() * right[:rank]).view_as(first.weight))
            second.weight.copy_((left[:, :rank] * values[:rank].sqrt())[:, :, None, None])
            if layer.bias is not None:
                second.bias.copy_(layer.bias)
        return nn.Sequential(first, second)

    return _replaced(dense, small, factorise)


def tucker(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Return the network with three convolutions, by 1x1 to r_i of the C channels, to r_o by the kernel, by 1x1 to F,
    for each one that is a LinearConv in `small`; of the largest ranks r_i / C = r_o / F with no more parameters.

    The Tucker decomposition in the two channel modes (Kim et al., ICLR 2016), by tensorly. Kernels are left as they
    are: of (512, 1) a decomposition would spend its parameters on them.

    Raises:
        ImportError: without tensorly.
    """
    import tensorly
    from tensorly.decomposition import partial_tucker

    def factorise(layer, ours):
        weight = layer.weight.detach()
        filters, channels, *kernel = weight.shape
        for step in range(RANK_STEPS, 0, -1):
            outer, inner = (max(1, step * most // RANK_STEPS) for most in (filters, channels))
            if inner * channels + outer * inner * prod(kernel) + outer * filters <= _weights(ours):
                break
        with tensorly.backend_context("pytorch"):
            (core, (out, into)), _ = partial_tucker(weight, rank=(outer, inner), modes=(0, 1))
        first = nn.Conv2d(channels, inner, 1, bias=False)
        middle = like(layer, inner, outer, bias=False)
        last = nn.Conv2d(outer, filters, 1, bias=layer.bias is not None)
        with torch.no_grad():
            first.weight.copy_(into.T[:, :, None, None])
            middle.weight.copy_(core)
            last.weight.copy_(out[:, :, None, None])
            if layer.bias is not None:
                last.bias.copy_(layer.bias)
        return nn.Sequential(first, middle, last)

    return _replaced(dense, small, factorise)


def _replaced(dense: nn.Module, small: nn.Module, make: Callable[[nn.Conv2d, LinearConv], nn.Module]) -> nn.Module:
    model = copy.deepcopy(dense)
    layers = {name: model.get_submodule(name) for name in layers_of(small, LinearConv)}
    return replace(model, {layer: make(layer, small.get_submodule(name)) for name, layer in layers.items()})


def _weights(layer):
    return sum(parameter.numel() for name, parameter in layer.named_parameters() if name != "bias")


def channel_pruning(dense: nn.Module, small: nn.Module, example: torch.Tensor | None = None) -> nn.Module:
    """Return the network without a share of its channels, least L1 norms first, by torch-pruning; the share is the
    least that leaves no more parameters than `small` has.

    Args:
        dense: its last layers, nn.Linear, keep their outputs.
        small: gives the number of parameters.
        example: what the network takes; left out, an image of CIFAR-10.

    Raises:
        ImportError: without torch-pruning.
    """
    import torch_pruning

    example = torch.randn(1, 3, 32, 32) if example is None else example

    def pruned(kept):
        model = copy.deepcopy(dense)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        importance = torch_pruning.importance.MagnitudeImportance(p=1)
        torch_pruning.pruner.MagnitudePruner(
            model, example, importance=importance, pruning_ratio=1 - kept, ignored_layers=last
        ).step()
        return model

    return largest_within(pruned, count_parameters(small))


def largest_within(make: Callable[[float], nn.Module], parameters: int) -> nn.Module:
    """Return `make(share)` for the largest share in (0, 1), to 1/4096, that has no more than so many parameters.

    Args:
        make: gives networks that grow with the share.
        parameters: that the network may have.
    """
    low, high, found = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        model = make(share)
        low, high, found = (share, high, model) if count_parameters(model) <= parameters else (low, share, found)
    return found


OTHERS = {"SVD as two convolutions": truncated_svd, "Tucker": tucker, "uniform channel pruning": channel_pruning}


def fit_quality(dense: nn.Module, small: nn.Module) -> list[dict]:
    """Measure how good the fits of a full-rank conversion are.

    Returns:
        For each layer the relative error of its filters as `fitted`, of the best matrix of rank P (`optimum`,
        Eckart-Young), and of keeping the first P filters and regressing the others on them (`first_filters`).
    """
    rows = []
    for name, ours in layers_of(small, LinearConv).items():
        filters = dense.get_submodule(name).weight.detach().flatten(1).double()  # (F, K)
        primary, norm = ours.primary_channels, filters.norm()
        first, others = filters[:primary], filters[primary:]
        left_over = others - torch.linalg.lstsq(first.T, others.T).solution.T @ first
        row = {
            "layer": name,
            "fitted": (ours.weight.detach().flatten(1).double() - filters).norm() / norm,
            "optimum": torch.linalg.svdvals(filters)[primary:].norm() / norm,
            "first_filters": left_over.norm() / norm,
            "largest_coefficient": ours.linear_weights.detach().abs().max(),
        }
        rows.append({key: value.item() if isinstance(value, torch.Tensor) else value for key, value in row.items()})
    return rows
