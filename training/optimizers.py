"""Optimizers of a recipe, and the decay of filters instead of their factors.

    decay of filters:  1/2 weight_decay sum |W|^2,  W = [V ; A V]

replaces the decay of V and A (Frobenius decay; Khodak et al., "Initialization and Regularization of Factorized Neural
Layers", ICLR 2021, arXiv 2105.01029).
"""

import torch
import torch.nn as nn

from linearconv import LinearConv
from training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the fused optimizer of a recipe; matrices and filters decay, biases and BatchNorm do not."""
    decayed_as_filters = set(_filter_parameters(model)) if recipe.decay == "filters" else set()
    by_decay = {}
    for parameter in model.parameters():
        decays = parameter.dim() > 1 and parameter not in decayed_as_filters
        by_decay.setdefault(recipe.weight_decay if decays else 0.0, []).append(parameter)
    groups = [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.lr, fused=True)


def _filter_parameters(model):
    """All primary filters and coefficients."""
    layers = (layer for layer in model.modules() if isinstance(layer, LinearConv))
    return [p for layer in layers for name, p in layer.named_parameters() if name != "bias"]


class FilterDecay:
    """Weight decay of the filters of all LinearConv layers, for recipes with `decay="filters"`.

    With adamw the decay is decoupled from the gradient.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        wanted = recipe.decay == "filters" and recipe.weight_decay
        self.layers = [layer for layer in model.modules() if wanted and isinstance(layer, LinearConv)]
        self.parameters = _filter_parameters(model) if wanted else []
        self.weight_decay, self.decoupled = recipe.weight_decay, recipe.optimizer == "adamw"

    def before_step(self, lr: float) -> None:
        """Apply the decay of one step at this learning rate; call between backward pass and optimizer step."""
        if not self.layers:
            return
        with torch.enable_grad():
            norm = sum(layer.weight.square().sum() for layer in self.layers) / 2
            gradients = torch.autograd.grad(norm, self.parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if self.decoupled:
                    parameter.sub_(gradient, alpha=lr * self.weight_decay)
                else:
                    parameter.grad.add_(gradient, alpha=self.weight_decay)
