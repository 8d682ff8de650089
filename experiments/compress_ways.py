"""Ways to make a trained network smaller: the variants of LinearConv, and what else there is for as many parameters."""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn

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
    """Return the network with tensorly-torch's Tucker convolution for each one that is a LinearConv in `small`, of the
    share of parameters that it has there.

    Raises:
        ImportError: without tensorly-torch.
    """
    from tltorch import FactorizedConv

    def factorise(layer, ours):
        share = _weights(ours) / layer.weight.numel()
        return FactorizedConv.from_conv(layer, rank=share, factorization="tucker")

    return _replaced(dense, small, factorise)


def _replaced(dense: nn.Module, small: nn.Module, make: Callable[[nn.Conv2d, LinearConv], nn.Module]) -> nn.Module:
    model = copy.deepcopy(dense)
    layers = {name: model.get_submodule(name) for name in layers_of(small, LinearConv)}
    return replace(model, {layer: make(layer, small.get_submodule(name)) for name, layer in layers.items()})


def _weights(layer):
    return sum(parameter.numel() for name, parameter in layer.named_parameters() if name != "bias")


def channel_pruning(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Return the network without the share of its channels that leaves as many parameters as `small` has, least L1
    norms first, by torch-pruning.

    Raises:
        ImportError: without torch-pruning.
    """
    import torch_pruning

    wanted, example = count_parameters(small), torch.randn(1, 3, 32, 32)
    low, high = 0.0, 0.95
    for _ in range(BISECTIONS):
        ratio, model = (low + high) / 2, copy.deepcopy(dense)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        importance = torch_pruning.importance.MagnitudeImportance(p=1)
        torch_pruning.pruner.MagnitudePruner(
            model, example, importance=importance, pruning_ratio=ratio, ignored_layers=last
        ).step()
        low, high = (ratio, high) if count_parameters(model) > wanted else (low, ratio)
    return model


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
