"""Ways to reduce a trained network to a share of its parameters: LinearConv, other factorisations, channel pruning.

    small = WAYS["spatial"](dense, 0.25, images)

Every factorisation shares out the budget over the layers like `linearconv_convert`: by the change of the network's
output on calibration images, measured for one layer at a time. The study then computes the statistics of BatchNorm anew
on these images, for all ways and for the dense network alike.

    svd      r filters of the layer's kernel, F of 1x1; the weighted principal components of the outputs
    spatial  r filters of k x 1, F of 1 x k (Jaderberg et al., BMVC 2014)
    tucker   s filters of 1x1, r of the kernel, F of 1x1, s / C = r / F (Kim et al., ICLR 2016); outputs as for svd
    pruning  fewer channels, the least magnitude first over all layers; needs the package torch-pruning
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call

from linearconv_convert import convert, fitting
from linearconv_convert.budget import Option, curve_of, share_out
from linearconv_convert.calibration import add_sensitivities, output_moments
from linearconv_convert.inputs import Call
from linearconv_convert.losses import MAX_IMAGES, MEASURED_ERRORS, MIN_LOSS, LossCurve
from linearconv_convert.surgery import layers_of, replace
from linearconv_convert.weights import root_of_layer
from training.counting import count_parameters
from training.errors import UsageError

STEPS = 64  # candidate sizes of a layer
BISECTIONS = 12  # of the share of pruned channels
MAX_PRUNED = 0.95  # share of the channels of a layer


class SVDPair:
    """A layer's weight W (F, C, kh, kw) projected on the first r principal components of its outputs, in a metric."""

    def __init__(self, weight: Tensor, root: Tensor, metric: Tensor | None) -> None:
        values, self.basis, dual = fitting.components(root, metric)
        self.filters = torch.einsum("rf,fcyx->rcyx", dual, weight)
        self.energy = values.square()
        self.ranks = range(1, len(values) + 1)

    def factors(self, rank: int) -> list[Tensor]:
        """Return the weights of the convolutions that replace the layer."""
        return [self.filters[:rank], self.basis[:, :rank, None, None]]

    def kept(self, rank: int) -> float:
        """Return the share of the squared norm that is kept."""
        return (self.energy[:rank].sum() / self.energy.sum()).item()


class Spatial(SVDPair):
    """A layer's weight as filters along the columns, then along the rows, from the SVD of W as (C kh, F kw)."""

    def __init__(self, weight: Tensor, root: Tensor, metric: Tensor | None) -> None:
        filters, channels, height, width = weight.shape
        matrix = weight.permute(1, 2, 0, 3).reshape(channels * height, filters * width)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        scale = values.sqrt()
        self.first = (left * scale).T.reshape(-1, channels, height, 1)
        self.second = (scale[:, None] * right).reshape(-1, filters, 1, width).transpose(0, 1)
        self.energy, self.ranks = values.square(), range(1, len(values) + 1)

    def factors(self, rank: int) -> list[Tensor]:
        """Return the weights of the convolutions that replace the layer."""
        return [self.first[:rank], self.second[:, :rank]]


class Tucker:
    """A layer's weight in the first s components of its input channels and r components of its outputs."""

    ranks = range(1, STEPS + 1)

    def __init__(self, weight: Tensor, root: Tensor, metric: Tensor | None) -> None:
        _, self.out, dual = fitting.components(root, metric)
        inputs = weight.transpose(0, 1).flatten(1)
        self.into = torch.linalg.eigh(inputs @ inputs.T).eigenvectors.flip(1)
        self.core = torch.einsum("rf,fcyx,cs->rsyx", dual, weight, self.into)
        self.total = self.core.square().sum()

    def factors(self, rank: int) -> list[Tensor]:
        """Return the weights of the convolutions that replace the layer."""
        r, s = (-(-rank * size // STEPS) for size in self.core.shape[:2])
        return [self.into[:, :s].T[:, :, None, None], self.core[:r, :s], self.out[:, :r, None, None]]

    def kept(self, rank: int) -> float:
        """Return the share of the squared norm that is kept."""
        return (self.factors(rank)[1].square().sum() / self.total).item()


def product(factors: Sequence[Tensor]) -> Tensor:
    """Return the weight (F, C, kh, kw) that consecutive convolutions stand for, one of them with each kernel side."""
    weight = factors[0]
    for factor in factors[1:]:
        weight = torch.einsum("frYX,rcyx->fcyYxX", factor, weight).flatten(2, 3).flatten(3, 4)
    return weight


def build(layer: nn.Conv2d, factors: Sequence[Tensor]) -> nn.Sequential:
    """Return the convolutions with these weights; strides and paddings go with the long sides of the kernels."""
    lengths = [[factor.shape[axis] for factor in factors] for axis in (2, 3)]
    places = [each.index(max(each)) for each in lengths]  # for rows and columns, the factor with the kernel
    layers = []
    for index, factor in enumerate(factors):
        geometry = {}
        for name, neutral in (("stride", 1), ("padding", 0), ("dilation", 1)):
            given = getattr(layer, name)
            geometry[name] = tuple(given[axis] if places[axis] == index else neutral for axis in (0, 1))
        bias = layer.bias is not None and index == len(factors) - 1
        new = nn.Conv2d(*factor.shape[1::-1], tuple(factor.shape[2:]), **geometry, bias=bias)
        with torch.no_grad():
            new.weight.copy_(factor)
            if bias:
                new.bias.copy_(layer.bias)
        layers.append(new)
    return nn.Sequential(*layers)


@torch.no_grad()
def factorise(form: type, dense: nn.Module, share: float, images: Sequence[Tensor]) -> nn.Module:
    """Return a network with layers of a form in place of its convolutions, where these save parameters."""
    model = copy.deepcopy(dense)
    layers = {name: layer for name, layer in layers_of(model, nn.Conv2d).items() if layer.groups == 1}
    moments, joined = output_moments(model, layers, images), torch.cat(list(images))
    batch = joined[:MAX_IMAGES]
    twin = copy.deepcopy(model)
    call = Call((joined,), {}, "calibration", len(joined), (0,))
    add_sensitivities(twin, {name: twin.get_submodule(name) for name in layers}, moments, call)
    expected, options, forms = model(batch), {}, {}
    for name, layer in layers.items():
        forms[name] = form(layer.weight.double(), root_of_layer(layer, moments[name]), moments[name].metric)
        chosen = forms[name].ranks[:: max(1, len(forms[name].ranks) // STEPS)]
        losses = {rank: -math.log(max(forms[name].kept(rank), 1e-9)) for rank in chosen}
        points = {}
        for error in MEASURED_ERRORS:
            rank = min(chosen, key=lambda rank: abs(losses[rank] + math.log1p(-(error**2))))  # noqa: B023
            if losses[rank] > 0:
                weight = product(forms[name].factors(rank)).to(layer.weight.dtype)
                output = functional_call(model, {f"{name}.weight": weight}, batch)
                change = ((output - expected).square().sum() / expected.square().sum()).item()
                points[losses[rank]] = max(change, MIN_LOSS)
        curve = LossCurve(tuple(sorted(points.items())))
        options[name] = [Option({}, layer.weight.numel())]
        for rank in chosen:
            size = sum(factor.numel() for factor in forms[name].factors(rank))
            if size < layer.weight.numel():
                error = math.sqrt(1 - math.exp(-losses[rank]))
                options[name].append(Option({"rank": rank}, size, curve.at(error)))
    total = count_parameters(model)
    others = total - sum(layer.weight.numel() for layer in layers.values())
    smallest = (curve_of(options)[0][0] + others) / total
    if smallest > share:
        raise UsageError(f"{share:g} cannot be reached: the smallest size is {smallest:.4g} of the model's")
    replacements = {}
    for name, option in share_out(options, share * total - others).items():
        if option.setting:
            replacements[layers[name]] = build(layers[name], forms[name].factors(option.setting["rank"]))
    return replace(model, replacements)


@torch.enable_grad()  # torch-pruning follows gradients
def prune(dense: nn.Module, share: float, images: Sequence[Tensor]) -> nn.Module:
    """Return the network without a part of its channels, so that at most a share of the parameters remains."""
    try:
        import torch_pruning
    except ImportError:
        raise UsageError("pruning needs the package torch-pruning: pip install torch-pruning") from None
    low, high, found = 0.0, 1.0, None  # shares of the channels that are pruned
    for _ in range(BISECTIONS):
        ratio, model = (low + high) / 2, copy.deepcopy(dense)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            images[0][:1],
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=MAX_PRUNED,
            ignored_layers=list(layers_of(model, (nn.Conv2d, nn.Linear)).values())[-1:],  # the classifier
        )
        pruner.step()
        if count_parameters(model) <= share * count_parameters(dense):
            high, found = ratio, model
        else:
            low = ratio
    if found is None:
        raise UsageError(f"{share:g} cannot be reached by pruning")
    return found


def linearconv(dense: nn.Module, share: float, images: Sequence[Tensor]) -> nn.Module:
    """Return the network converted to full-rank LinearConv, calibrated."""
    return convert(dense, "rank", budget=share, calibration=list(images))


WAYS: dict[str, Callable[[nn.Module, float, Sequence[Tensor]], nn.Module]] = {
    "linearconv": linearconv,
    "svd": partial(factorise, SVDPair),
    "spatial": partial(factorise, Spatial),
    "tucker": partial(factorise, Tucker),
    "pruning": prune,
}
