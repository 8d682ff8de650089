"""What models take and give: a tensor, a tuple of arguments, or a dict of them by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import Parameter, signature
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from linearconv_convert.surgery import ConversionError, first_line

TOLERANCE = 1e-4  # largest difference over the largest magnitude of the outputs, for which outputs count as equal
TINY = torch.finfo(torch.float64).tiny


class Call(NamedTuple):
    """The arguments of one forward pass."""

    args: tuple
    kwargs: dict
    what: str  # they are, in an error

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors in it."""
        return tensors_of((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """The length of the first tensor."""
        return next((len(tensor) for tensor in self.tensors if tensor.ndim), 0)

    def images(self, index: slice | torch.Tensor) -> "Call":
        """Return the same of some of its images: every tensor as long as the first one is indexed."""
        return self.map(lambda tensor: tensor[index] if tensor.ndim and len(tensor) == self.batch else tensor)

    def map(self, function: Callable[[torch.Tensor], object]) -> "Call":
        """Return the same with a function applied to all tensors."""
        args, kwargs = tree_map(
            lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, (self.args, self.kwargs)
        )
        return Call(args, kwargs, self.what)

    def run(self, model: nn.Module, changed: dict[str, torch.Tensor] | None = None) -> object:
        """Return the model's output, of arguments on the model's device.

        Args:
            model: takes the arguments.
            changed: {name: tensor} of parameters to run it with instead of its own.

        Raises:
            ConversionError: where the model does not take them.
        """
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        args, kwargs, _ = self.map(lambda tensor: tensor.to(device))
        try:
            return functional_call(model, changed, args, kwargs) if changed else model(*args, **kwargs)
        except Exception as error:  # a forward pass may fail in any way
            raise ConversionError(f"the model does not run on {self.what}: {first_line(error)}") from error


def tensors_of(tree: object) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@torch.no_grad()
def outputs(model: nn.Module, call: Call) -> list[torch.Tensor]:
    """Return all tensors of a model's output, in float64.

    Raises:
        ConversionError: for a model without them, or that does not take the arguments.
    """
    tensors = [tensor.double() for tensor in tensors_of(call.run(model))]
    if not tensors:
        raise ConversionError("only models whose outputs are tensors, in tuples, lists or dicts, can be verified")
    return tensors


def largest_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest difference of outputs, each relative to the largest magnitude of the expected output."""
    pairs = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if theirs.numel()]
    errors = [(ours - theirs).abs().max() / theirs.abs().max().clamp_min(TINY) for ours, theirs in pairs]
    return torch.stack(errors).max().item() if errors else 0.0


def example_call(model: nn.Module, example: object) -> Call:
    """Return the forward pass of an example input: a tuple holds all arguments, a dict those of its names.

    A dict of which `forward` knows no name is itself the argument, as everything else is.
    """
    return _call(model, example, "example_input")


def calibration_calls(model: nn.Module, calibration: object) -> Iterator[Call]:
    """Return the forward passes of calibration batches.

    Args:
        model: gives the names and the number of arguments that have no default.
        calibration: a batch (a tensor, tuple or dict), or several in any other iterable. Of a tuple or list as loaders
            give them, the model gets as many elements as it cannot do without: what is left are labels.

    Raises:
        ConversionError: where there is no batch in it.
    """
    is_one = isinstance(calibration, (torch.Tensor, tuple, Mapping)) or not isinstance(calibration, Iterable)
    calls = [] if isinstance(calibration, tuple) and not calibration else [calibration] if is_one else calibration
    found = False
    for batch in calls:
        found = True
        if isinstance(batch, (tuple, list)) and batch:
            nested = isinstance(batch[0], (tuple, list, Mapping))
            batch = batch[0] if nested else tuple(batch[: max(1, _required(model))])
        yield _call(model, batch, "calibration")
    if not found:
        raise ConversionError("calibration holds no batch of images")


def _call(model, given, what):
    if isinstance(given, Mapping):
        parameters = signature(model.forward).parameters.values()
        takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
        named = {key: value for key, value in given.items() if takes_all or key in {each.name for each in parameters}}
        return Call((), named, what) if named else Call((given,), {}, what)
    return Call(tuple(given) if isinstance(given, tuple) else (given,), {}, what)


def _required(model):
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature(model.forward).parameters.values()
    return sum(each.kind in positional and each.default is Parameter.empty for each in parameters)
