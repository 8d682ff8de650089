"""Export of a model to a file, in ONNX or in torch.export's own format."""

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from linearconv_convert.deploying import deploy
from linearconv_convert.folding import fold
from linearconv_convert.inputs import Call, known_call, largest_error, outputs, tensors_of, tolerance_of
from linearconv_convert.surgery import ConversionError, ConversionWarning, check_model, copy_of, first_line

FORMS = ("deployed", "folded")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXTRA_SIZE = (0, 64, 0, 32)  # additional columns and rows of the images that check dynamic files


class Exported(NamedTuple):
    """A file that was written and checked."""

    path: Path
    bytes: int
    error: float  # largest difference from the outputs of PyTorch, relative to their largest magnitude


def export(
    model: nn.Module, path: str | Path, example_input: object, form: str = "deployed", dynamic: bool = False
) -> Exported:
    """Write a model in eval mode to a file that accepts batches of any size, and compare the outputs of both.

    The error is the largest for batches of 1 and 7, and for larger images if `dynamic`. BatchNorm is folded into the
    preceding convolution, except if the model cannot be traced or has other outputs then.

    Args:
        model: any model, with or without LinearConv layers.
        path: a path that ends in `.onnx` for ONNX, checked by onnxruntime, or in `.pt2` for torch.export's own format.
            An existing file is replaced after the check of the new file.
        example_input: the model's input: images (N, C, H, W), a tuple of all arguments, or a dict of them by name. The
            example fixes all sizes except N, and N too if running the model shows that N is no batch size.
        form: `"deployed"` writes the result of :func:`deploy`, which is small and fast; `"folded"` writes one
            convolution per layer.
        dynamic: accept images of any height and width too.

    Raises:
        ConversionError: for another ending or form, for missing packages, for a model that torch cannot export or the
            runtime cannot run, or for outputs that differ by more than 1e-4, or by 8 epsilons of the model's data type.
    """
    path = Path(path)
    if form not in FORMS:
        raise ConversionError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    check_path(path)
    check_model(model)
    model = copy_of(model).eval()
    call: Any = known_call(model, example_input)
    calls = [_batch(call, 1), _batch(call, 7)]
    if dynamic:
        larger = calls[0].map(lambda tensor: F.pad(tensor, EXTRA_SIZE, "replicate") if tensor.ndim == 4 else tensor)
        calls.append(larger._replace(source="larger images, as dynamic asks for"))
    expected = [output for each in calls for output in outputs(model, each)]
    if not expected:
        raise ConversionError("only models whose outputs are tensors, in tuples, lists or dicts, can be verified")
    prepared = model  # if deploying and folding change the outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the file is correct with BatchNorm too
        prepare = partial(deploy, channels_last=False) if form == "deployed" else partial(fold, batch_norm=True)
        for attempt in (fold, prepare):
            with suppress(ConversionError):
                prepared = attempt(model, example_input=example_input)
    with atomic_file(path) as part:
        _write(prepared, part, _batch(call, 2), dynamic)
        error = _largest_error(part, calls, expected)
        if not error <= tolerance_of(model):
            raise ConversionError(f"the exported file differs from the model by {error:.1e} relative to its outputs")
    return Exported(path, path.stat().st_size, error)


def check_path(path: Path) -> None:
    """Raise a ConversionError for a path with another ending, in a missing folder, or without the packages it needs."""
    if path.suffix not in (".onnx", ".pt2"):
        raise ConversionError(f"{path}: the ending decides the format and must be .onnx or .pt2")
    if not path.parent.is_dir():
        raise ConversionError(f"{path}: there is no folder {path.parent}")
    for package in ONNX_PACKAGES if path.suffix == ".onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise ConversionError(f"ONNX files need the package {package}: pip install {' '.join(ONNX_PACKAGES)}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces `path` at the end of the block, and is removed on an error."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # on a full disk, the error lacks the file's name
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def runner(path: Path) -> Callable[..., object]:
    """Return a function of the model's arguments that runs an exported file on the CPU, with torch's threads.

    The outputs of a `.pt2` file have the structure of the model's outputs; an ONNX file returns a list.
    """
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime  # an optional package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads do not occupy cores
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*args, **kwargs):
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of((args, kwargs))]
        return [torch.from_numpy(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def _write(model, path, call, dynamic):
    sizes = {0: torch.export.Dim("batch", min=1, max=1 << 20), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    leaves, structure = tree_flatten((call.args, call.kwargs))
    for position, leaf in enumerate(leaves):
        axes = [0] if position in call.batched else []
        axes += [2, 3] if dynamic and isinstance(leaf, Tensor) and leaf.ndim == 4 else []
        leaves[position] = {axis: sizes[axis] for axis in axes} if isinstance(leaf, Tensor) else None
    of_args, of_kwargs = tree_unflatten(leaves, structure)
    options = {"kwargs": call.kwargs, "dynamic_shapes": of_kwargs or of_args}
    try:
        with _silence():
            if path.suffix == ".onnx":
                program = torch.onnx.export(model, call.args, **options, dynamo=True, verbose=False)
                program.save(path, external_data=False)
            else:
                torch.export.save(torch.export.export(model, call.args, **options), path)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
        reason = f"torch cannot export the model: {first_line(cause)}"
        if path.suffix == ".onnx" and _older_exporter_works(model, path, call):
            reason += f"; its older exporter (dynamo=False) can, for a fixed batch of {call.batch}"
        raise ConversionError(reason) from error


def _older_exporter_works(model, path, call):
    try:
        with _silence():
            torch.onnx.export(model, call.args, path, kwargs=call.kwargs, dynamo=False)
            return _largest_error(path, [call], outputs(model, call)) <= tolerance_of(model)
    except Exception:  # this exporter may raise any error too
        return False


@contextmanager
def _silence():
    """In this context, nothing is printed, logged or warned."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@torch.no_grad()
def _largest_error(path, calls, expected):
    """The largest relative error of an exported file for some calls, whose outputs of the model are `expected`."""
    try:
        run = runner(path)
        found = [output for call in calls for output in tensors_of(run(*call.args, **call.kwargs))]
        return largest_error(found, expected)
    except Exception as error:  # runtimes may raise any error
        raise ConversionError(f"the exported file does not run: {first_line(error)}") from error


def _batch(call: Any, size: int) -> Call:
    """The call with `size` images, which repeat the given images."""
    return call.images(torch.arange(size) % call.batch)._replace(batch=size) if call.batched else call
