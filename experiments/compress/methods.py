"""Methods to compress a trained network: the variants of LinearConv, and other methods with equal parameters."""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn

from baselines.drop_in import like
from linearconv import LinearConv
from linearconv_convert.surgery import layers_of, replace
from linearconv_variants import Variant
from training.counting import count_parameters

HALF = "full rank, alpha 0.5"  # the other methods get equal parameters
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
BUDGETED = (HALF, "full rank, alpha 0.25")  # also with equal parameters by budget
BISECTIONS = 12
RANK_STEPS = 256  # number of candidate ranks


def truncated_svd(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Return the network with two convolutions, to r and by 1x1 to F channels, for each LinearConv layer in `small`.

    The two convolutions have at most the parameters of the layer: r (K + F) <= P K + (F - P) P.
    """
    return _replaced(dense, small, _svd_pair)


def _svd_pair(layer, most):
    weight = layer.weight.detach()
    filters, size = len(weight), weight[0].numel()
    rank = max(1, most // (filters + size))
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    first = like(layer, layer.in_channels, rank, bias=False)
    second = nn.Conv2d(rank, filters, 1, bias=layer.bias is not None)
    root = values[:rank].sqrt()
    return _with_weights([first, second], [root[:, None] * right[:rank], left[:, :rank] * root], layer.bias)


def tucker(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Return the network with three convolutions for each LinearConv layer in `small`.

    These are 1x1 from C to r_i channels, the kernel's size to r_o, and 1x1 to F, with the largest ranks
    r_i / C = r_o / F that need no more parameters: the Tucker decomposition in the two channel modes (Kim et al.,
    ICLR 2016), computed by tensorly.

    Raises:
        ImportError: if tensorly is not installed.
    """
    import tensorly  # noqa: F401

    return _replaced(dense, small, _tucker_triple)


def _tucker_triple(layer, most):
    import tensorly
    from tensorly.decomposition import partial_tucker

    weight = layer.weight.detach()
    filters, channels, *kernel = weight.shape
    positions = kernel[0] * kernel[1]
    for step in range(RANK_STEPS, 0, -1):
        outer, inner = max(1, step * filters // RANK_STEPS), max(1, step * channels // RANK_STEPS)
        if inner * channels + outer * inner * positions + outer * filters <= most:
            break
    with tensorly.backend_context("pytorch"):
        (core, (out, into)), _ = partial_tucker(weight, rank=(outer, inner), modes=(0, 1))
    first = nn.Conv2d(channels, inner, 1, bias=False)
    middle = like(layer, inner, outer, bias=False)
    last = nn.Conv2d(outer, filters, 1, bias=layer.bias is not None)
    return _with_weights([first, middle, last], [into.T, core, out], layer.bias)


def _with_weights(layers, weights, bias):
    """Return a sequence of the layers with the given weights; the last layer gets the bias."""
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight.reshape(layer.weight.shape))
        if bias is not None:
            layers[-1].bias.copy_(bias)
    return nn.Sequential(*layers)


def _replaced(dense: nn.Module, small: nn.Module, make: Callable[[nn.Conv2d, int], nn.Module]) -> nn.Module:
    """Return the dense network with `make(layer, parameters)` for each layer that is a LinearConv layer in `small`."""
    model, changes = copy.deepcopy(dense), {}
    for name, ours in layers_of(small, LinearConv).items():
        parameters = sum(parameter.numel() for key, parameter in ours.named_parameters() if key != "bias")
        layer = model.get_submodule(name)
        changes[layer] = make(layer, parameters)
    return replace(model, changes)


def channel_pruning(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Return the network without a share of its channels, smallest L1 norms first, pruned by torch-pruning.

    The share is the smallest that leaves no more parameters than `small` has.

    Raises:
        ImportError: if torch-pruning is not installed.
    """
    import torch_pruning  # noqa: F401

    low, high, found = 0.0, 1.0, None  # shares of the channels that are kept
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        model = _pruned(dense, share)
        if count_parameters(model) <= count_parameters(small):
            low, found = share, model
        else:
            high = share
    return found


def _pruned(dense, kept):
    import torch_pruning

    model = copy.deepcopy(dense)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    example = torch.randn(1, 3, 32, 32)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, example, importance=importance, pruning_ratio=1 - kept, ignored_layers=last
    )
    pruner.step()
    return model


OTHERS = {"SVD as two convolutions": truncated_svd, "Tucker": tucker, "uniform channel pruning": channel_pruning}


def fit_quality(dense: nn.Module, small: nn.Module) -> list[dict]:
    """Measure the fits of a full-rank conversion.

    Returns:
        For each layer the relative errors of the fitted filters (`fitted`), of the best matrix of rank P (`optimum`,
        Eckart-Young), and of the first P filters with the others regressed on these (`first_filters`).
    """
    rows = []
    for name, ours in layers_of(small, LinearConv).items():
        filters = dense.get_submodule(name).weight.detach().flatten(1).double()  # (F, K)
        primary, norm = ours.primary_channels, filters.norm()
        first, others = filters[:primary], filters[primary:]
        left_over = others - torch.linalg.lstsq(first.T, others.T).solution.T @ first
        fitted = ours.weight.detach().flatten(1).double()
        row = {
            "layer": name,
            "fitted": ((fitted - filters).norm() / norm).item(),
            "optimum": (torch.linalg.svdvals(filters)[primary:].norm() / norm).item(),
            "first_filters": (left_over.norm() / norm).item(),
            "largest_coefficient": ours.linear_weights.detach().abs().max().item(),
        }
        rows.append(row)
    return rows
