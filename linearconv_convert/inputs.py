"""Inputs of models, and verification by running: other forms of a model must have the model's outputs on an input.

An input is a tensor, a tuple of arguments, or a dict of them by name. It is known if the caller gives calibration or an
example input, or if the model runs on random images.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from linearconv import LinearConv
from linearconv_convert.surgery import ConversionError, ConversionWarning, copy_of, first_line

SIDES = (64, 32, 28, 224)  # of the random images, in the order of the trials
MAX_IMAGES = 2  # number of images for a verification
TOLERANCE = 1e-4  # largest difference of equal outputs, relative to their largest magnitude
EPSILONS = 8  # the same in epsilons of the data type, for data types of low precision
TINY = torch.finfo(torch.float64).tiny


class Call(NamedTuple):
    """The arguments of one forward pass."""

    args: tuple
    kwargs: dict[str, Any]
    source: str  # source of the arguments, for error messages
    batch: int = 1  # number of images
    batched: tuple[int, ...] = ()  # positions, in `tree_leaves`, of the tensors with one entry for each image

    def images(self, index: slice | Tensor) -> "Call":
        """Return the call with some of its images: every tensor with one entry for each image is indexed."""
        return self.map(lambda tensor: tensor[index], self.batched)

    def map(self, function: Callable[[Tensor], object], positions: Iterable[int] | None = None) -> "Call":
        """Return the call with a function applied to all tensors, or to those at `positions`."""
        leaves, structure = tree_flatten((self.args, self.kwargs))
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and (positions is None or position in positions):
                leaves[position] = function(leaf)
        args, kwargs = tree_unflatten(leaves, structure)
        return self._replace(args=args, kwargs=kwargs)

    def run(self, model: nn.Module) -> object:
        """Return the model's output, with the arguments on its device; raise a ConversionError if it does not run."""
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        moved = self.map(lambda tensor: tensor.to(device))
        try:
            return model(*moved.args, **moved.kwargs)
        except Exception as error:  # a forward pass may raise any error
            raise ConversionError(f"the model does not run on {self.source}: {first_line(error)}") from error


def tensors_of(tree: object) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def calibration_calls(model: nn.Module, calibration: object) -> Iterator[Call]:
    """Return the forward passes of one calibration batch (a tensor, tuple or dict), or of several in another iterable.

    Of a tuple or list, as data loaders return them, the model gets the first elements, one for each argument without a
    default; the others are labels. A tuple of single images (C, H, W), as detectors take them, becomes one list.

    Raises:
        ConversionError: if there is no batch, or if a batch has no images or has values that are not finite.
    """
    parameters = signature(model.forward).parameters.values()
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(each.default is Parameter.empty and each.kind in positional for each in parameters)
    is_one = isinstance(calibration, (Tensor, tuple, Mapping)) or not isinstance(calibration, Iterable)
    batches: Any = [calibration] if is_one and calibration != () else calibration
    number = 0
    for number, batch in enumerate(batches, 1):
        if isinstance(batch, (tuple, list)) and batch:
            if isinstance(batch[0], (tuple, list, Mapping)):
                batch = batch[0]
                if isinstance(batch, tuple) and required == 1 and all(each.ndim == 3 for each in tensors_of(batch)):
                    batch = list(batch)
            else:
                batch = tuple(batch[: max(1, required)])
        call = call_of(model, batch, "calibration")
        for tensor in tensors_of((call.args, call.kwargs)):
            if not tensor.numel():
                raise ConversionError(f"calibration: batch {number} is empty, a tensor of shape {tuple(tensor.shape)}")
            finite = tensor.isfinite()
            if not finite.all():
                image = f"image {finite.flatten(1).all(1).int().argmin().item()} of " if tensor.ndim > 1 else ""
                raise ConversionError(f"calibration: {image}batch {number} has values that are not finite")
        yield call
    if not number:
        raise ConversionError("calibration has no batch of images")


def call_of(model: nn.Module, given: object, source: str) -> Call:
    """Return the forward pass of an input: a tuple has all arguments, a dict has named arguments.

    A dict without any argument name of `forward` is itself the argument, like every other object.
    """
    if isinstance(given, Mapping):
        parameters = signature(model.forward).parameters
        takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
        if named := {key: value for key, value in given.items() if takes_all or key in parameters}:
            return Call((), named, source)
    return Call(given if isinstance(given, tuple) else (given,), {}, source)


class Verification:
    """The outputs of a model on one input, to compare with other forms of the model; only copies are run, in eval mode.

    The input is a `call` with a batch size, or random images, if the model takes them.

    Raises:
        ConversionError: if the model cannot be copied, if its copy calls layers of the model itself, or if the model
            does not run on `call`.
    """

    def __init__(self, model: nn.Module, call: Call | None) -> None:
        self.expected: list[Tensor] = []  # empty if no input is known
        self.tolerance = tolerance_of(model)
        self.reason = "no input with finite outputs is known: give example_input"  # not to verify
        if call is not None:
            self.reason = f"the outputs on {call.source} are empty or not finite"
        called: set[nn.Module] = set()
        for self.call in random_calls(model) if call is None else [call.images(slice(MAX_IMAGES))]:
            try:
                self.expected = outputs(model, self.call, called)
                break
            except ConversionError:
                if call is not None:
                    raise
        for name, module in model.named_modules():
            if module in called:
                held = f"a copy of the model calls layer {name!r} of the model itself: a function holds it"
                raise ConversionError(held)
        if not any(output.isfinite().any() for output in self.expected):
            self.expected = []

    def difference(self, other: nn.Module) -> str:
        """Return how the outputs of another form of the model differ, or an empty string if they are equal."""
        try:
            error = largest_error(outputs(other, self.call), self.expected) if self.expected else 0.0
        except ConversionError as failure:
            return str(failure)
        return "" if error <= self.tolerance else f"the outputs differ by {error:.1e} of their largest magnitude"

    def warn_if_unknown(self) -> None:
        """Raise a ConversionWarning if no input is known."""
        if not self.expected:
            warnings.warn(f"the result is not verified: {self.reason}", ConversionWarning, stacklevel=3)


def random_calls(model: nn.Module) -> Iterator[Call]:
    """Return forward passes of random images of several sizes, for the first convolution of a model with values."""
    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv2d, LinearConv))]
    if convolutions and not any(parameter.is_meta for parameter in model.parameters()):
        for side in SIDES:
            shape = MAX_IMAGES, convolutions[0].in_channels, side, side
            images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            yield Call((images.to(next(convolutions[0].parameters())),), {}, "random images", MAX_IMAGES, (0,))


def known_call(model: nn.Module, example: object) -> Call | None:
    """Return the forward pass of an example input with its batch size, or None for the example None."""
    return None if example is None else with_batch(model, call_of(model, example, "example_input"))


def with_batch(model: nn.Module, call: Call) -> Call:
    """Return a call with its batch size, and with the positions of the tensors that have one entry for each image.

    All tensors as long as the first tensor, or else the first tensor alone, are right if the model runs on the first
    image and on the first two, with equal outputs for the first. A list as the first argument is a list of images, as
    detectors take them. Otherwise the batch size is 1.
    """
    if call.args and isinstance(call.args[0], list):
        return call._replace(batch=len(call.args[0]))
    leaves = tree_leaves((call.args, call.kwargs))
    lengths = [len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else 0 for leaf in leaves]
    size = next(filter(None, lengths), 0)
    same = tuple(position for position, length in enumerate(lengths) if length == size > 0)
    for batched in dict.fromkeys((same, same[:1]) if same else ()):
        trial = call._replace(batch=size, batched=batched)
        try:
            one = outputs(model, trial.images(torch.tensor([0])))
            two = outputs(model, trial.images(torch.tensor([0, min(1, size - 1)])))
        except ConversionError:
            continue
        pairs = [(a, b) for a, b in zip(one, two, strict=False) if a.shape[:1] == (1,) and b.shape == (2, *a.shape[1:])]
        if all(largest_error([a], [b[:1]]) <= 10 * tolerance_of(model) for a, b in pairs):
            return trial
    return call


def join_batches(call: Call, others: Iterable[Call], count: int) -> Call:
    """Return a call from :func:`with_batch` joined with further batches until it has `count` images or more.

    The first batch that cannot be joined, for example because its images have another size, is the end.
    """
    for other in others:
        leaves, structure = tree_flatten((call.args, call.kwargs))
        more, other_structure = tree_flatten((other.args, other.kwargs))
        if not call.batched or call.batch >= count or structure != other_structure:
            break
        if any(leaves[position].shape[1:] != more[position].shape[1:] for position in call.batched):
            break
        for position in call.batched:
            leaves[position] = torch.cat((leaves[position], more[position]))
        args, kwargs = tree_unflatten(leaves, structure)
        call = call._replace(args=args, kwargs=kwargs, batch=len(leaves[call.batched[0]]))
    return call


def tolerance_of(model: nn.Module) -> float:
    """Return the largest relative difference of equal outputs, from the lowest precision of the model's parameters."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    epsilons = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max([TOLERANCE, *(EPSILONS * epsilon for epsilon in epsilons)])


@torch.no_grad()
def outputs(model: nn.Module, call: Call, called: set[nn.Module] | None = None) -> list[Tensor]:
    """Return all outputs of a copy of a model in eval mode; the set `called` gets the modules that ran."""
    called = set() if called is None else called
    handle = register_module_forward_pre_hook(lambda module, _: called.add(module))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return tensors_of(call.run(copy_of(model).eval()))
    finally:
        handle.remove()


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference relative to each finite magnitude; equal infinities and NaNs are equal.

    Outputs of other shapes raise a ConversionError.
    """
    if [output.shape for output in found] != [output.shape for output in expected]:
        raise ConversionError("the outputs have other shapes")
    errors = [torch.zeros((), dtype=torch.float64)]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.numel():
            dtype = torch.promote_types(theirs.dtype, torch.float64)
            ours, theirs = ours.to("cpu", dtype), theirs.to("cpu", dtype)
            is_equal = (ours == theirs) | (ours.isnan() & theirs.isnan())
            difference = (ours - theirs).abs().masked_fill(is_equal, 0).max()
            errors.append(difference / theirs.abs().masked_fill(~theirs.isfinite(), 0).max().clamp_min(TINY))
    return torch.stack(errors).max().item()  # NaN if any error is NaN
