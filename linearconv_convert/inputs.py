"""Inputs and outputs of models: a tensor, a tuple of arguments, or a dict of them by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import Parameter, signature
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from linearconv_convert.surgery import ConversionError, first_line

TOLERANCE = 1e-4  # largest difference of equal outputs, relative to their largest magnitude
TINY = torch.finfo(torch.float64).tiny


class Call(NamedTuple):
    """The arguments of one forward pass."""

    args: tuple
    kwargs: dict
    source: str  # source of the arguments, for error messages

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors in the arguments."""
        return tensors_of((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """Number of images: the length of a list of images, as detectors take it, or of the first tensor."""
        if self.args and isinstance(self.args[0], list):
            return len(self.args[0])
        return next((len(tensor) for tensor in self.tensors if tensor.ndim), 1)

    def images(self, index: slice | torch.Tensor) -> "Call":
        """Return the call with some of its images: every tensor with the length of the batch is indexed."""
        return self.map(lambda tensor: tensor[index] if tensor.ndim and len(tensor) == self.batch else tensor)

    def map(self, function: Callable[[torch.Tensor], object]) -> "Call":
        """Return the call with a function applied to all tensors."""
        args, kwargs = tree_map(
            lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, (self.args, self.kwargs)
        )
        return Call(args, kwargs, self.source)

    def run(self, model: nn.Module, changed: dict[str, torch.Tensor] | None = None) -> object:
        """Return the model's output. The arguments are moved to the model's device.

        Args:
            model: the model.
            changed: {name: tensor} of parameters that are replaced in this pass.

        Raises:
            ConversionError: if the model does not run on the arguments.
        """
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        args, kwargs, _ = self.map(lambda tensor: tensor.to(device))
        try:
            return functional_call(model, changed, args, kwargs) if changed else model(*args, **kwargs)
        except Exception as error:  # a forward pass may raise any error
            raise ConversionError(f"the model does not run on {self.source}: {first_line(error)}") from error


def tensors_of(tree: object) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@torch.no_grad()
def outputs(model: nn.Module, call: Call) -> list[torch.Tensor]:
    """Return all tensors of a model's output, in float64.

    Raises:
        ConversionError: if the output has no tensors, or the model does not run on the arguments.
    """
    tensors = [tensor.double() for tensor in tensors_of(call.run(model))]
    if not tensors:
        raise ConversionError("only models whose outputs are tensors, in tuples, lists or dicts, can be verified")
    return tensors


def largest_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest magnitude of each expected output."""
    errors = [0.0]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.numel():
            errors.append(((ours - theirs).abs().max() / theirs.abs().max().clamp_min(TINY)).item())
    return torch.tensor(errors).max().item()  # NaN if any error is NaN


def example_call(model: nn.Module, example: object) -> Call:
    """Return the forward pass of an example input: a tuple has all arguments, a dict has named arguments.

    A dict without any argument name of `forward` is itself the argument, like every other object.
    """
    return _call(model, example, "example_input")


def calibration_calls(model: nn.Module, calibration: object) -> Iterator[Call]:
    """Return the forward passes of calibration batches.

    Args:
        model: the model, whose `forward` defines the argument names and the arguments without a default.
        calibration: a batch (a tensor, tuple or dict), or several in any other iterable. If a data loader returns
            tuples or lists, the model gets their first elements, one for each argument without a default. The other
            elements are labels.

    Raises:
        ConversionError: if there is no batch, or if a batch has no images or has values that are not finite.
    """
    is_one = isinstance(calibration, (torch.Tensor, tuple, Mapping)) or not isinstance(calibration, Iterable)
    batches = [] if isinstance(calibration, tuple) and not calibration else [calibration] if is_one else calibration
    number = 0
    for number, batch in enumerate(batches, 1):
        if isinstance(batch, (tuple, list)) and batch:
            is_nested = isinstance(batch[0], (tuple, list, Mapping))
            batch = batch[0] if is_nested else tuple(batch[: max(1, _required(model))])
        call = _call(model, batch, "calibration")
        _check_values(call, number)
        yield call
    if not number:
        raise ConversionError("calibration has no batch of images")


def _check_values(call, number):
    for tensor in call.tensors:
        if not tensor.numel():
            raise ConversionError(f"calibration: batch {number} is empty, a tensor of shape {tuple(tensor.shape)}")
        finite = tensor.isfinite()
        if not finite.all():
            image = f"image {finite.flatten(1).all(1).int().argmin().item()} of " if tensor.ndim > 1 else ""
            raise ConversionError(f"calibration: {image}batch {number} has values that are not finite")


def _call(model, given, source):
    if isinstance(given, Mapping):
        parameters = signature(model.forward).parameters
        takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
        named = {key: value for key, value in given.items() if takes_all or key in parameters}
        return Call((), named, source) if named else Call((given,), {}, source)
    return Call(tuple(given) if isinstance(given, tuple) else (given,), {}, source)


def _required(model):
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature(model.forward).parameters.values()
    return sum(each.kind in positional and each.default is Parameter.empty for each in parameters)
