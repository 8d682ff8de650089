"""export: a model as a file that runs elsewhere, in ONNX or in torch.export's own format."""

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils._pytree import tree_map

from linearconv_convert.deploying import deploy
from linearconv_convert.folding import fold
from linearconv_convert.inputs import TOLERANCE, Call, example_call, largest_error, outputs, tensors_of
from linearconv_convert.surgery import ConversionError, ConversionWarning, copy_of, first_line

FORMS = ("deployed", "folded")
EXTRA_SIZE = (32, 64)  # rows and columns of the larger images for the check of dynamic files
MAX_ONNX_BYTES = 2**31 - 2**20  # of weights in one ONNX file


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked."""

    path: Path
    form: str  # of the network in it, one of `FORMS`
    bytes: int
    error: float  # largest difference from PyTorch's outputs, relative to their largest magnitude


def export(
    model: nn.Module, path: str | Path, example_input: object, form: str = "deployed", dynamic: bool = False
) -> Exported:
    """Write a model to a file that takes batches of any size, and check it against the model.

    The model is exported in eval mode. BatchNorm is folded into the convolution before it, if the model can be traced.

    Args:
        model: any model, with LinearConv layers or without.
        path: ending in `.onnx` for ONNX, which is checked by onnxruntime, or in `.pt2` for torch.export's own format.
            An existing file is replaced after the new one has been checked.
        example_input: the model's input: images (N, C, H, W), a tuple of all arguments, or a dict of them by name. It
            fixes all sizes but N.
        form: `"deployed"` writes the result of :func:`deploy`, small and fast; `"folded"` one convolution per layer.
        dynamic: leave height and width of images open too.

    Returns:
        The file, its bytes, its largest relative error at batches of 1 and 7, with `dynamic` of larger images too.

    Raises:
        ConversionError: for another ending or form, missing packages, a model that cannot be exported, or outputs that
            differ by more than 1e-4.
    """
    path = Path(path)
    if form not in FORMS:
        raise ConversionError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    check_path(path)
    model = copy_of(model).eval()
    prepared = _prepared(model, form)
    call = example_call(model, example_input)
    calls = [_batch(call, 1), _batch(call, 7)] + ([_larger(_batch(call, 1))] if dynamic else [])
    expected = [outputs(model, each) for each in calls]
    with atomic_file(path) as part:
        _write(prepared, part, _batch(call, 2), dynamic)
        run = runner(part)
        errors = [_error(run, each, theirs) for each, theirs in zip(calls, expected, strict=True)]
        error = torch.tensor(errors).max().item()  # NaN too
        if not error <= TOLERANCE:
            raise ConversionError(f"the exported file differs from the model by {error:.1e} relative to its outputs")
    return Exported(path, form, path.stat().st_size, error)


def check_path(path: Path) -> None:
    """Refuse a path that a model cannot be exported to.

    Raises:
        ConversionError: for an unknown ending or a missing folder.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ConversionError(f"{path}: the ending decides the format and must be .onnx or .pt2")
    if not path.parent.is_dir():
        raise ConversionError(f"{path}: there is no folder {path.parent}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to. It is renamed to `path` at the end of the block, or removed on an error."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:  # of a full disk, without the file's name
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def runner(path: Path) -> Callable[..., object]:
    """Return a function of the model's arguments that runs an exported file on the CPU."""
    return onnx_runner(path) if path.suffix == ".onnx" else torch.export.load(path).module()


def onnx_runner(path: str | Path, threads: int | None = None) -> Callable[..., object]:
    """Return a function that runs an ONNX file on the CPU, with the threads of torch or the given number.

    The function takes the model's arguments, and returns the output tensor, or a list of several.

    Raises:
        ConversionError: without onnxruntime.
    """
    onnxruntime = _import_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*args, **kwargs):
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of((args, kwargs))]
        outputs = [torch.from_numpy(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def milliseconds(run: Callable[[torch.Tensor], object], images: torch.Tensor, seconds: float = 1.0) -> float:
    """Return the median time of `run(images)`, called for about `seconds`."""
    from torch.utils.benchmark import Timer  # slow to import, and only measuring needs it

    timer = Timer("run(images)", globals={"run": run, "images": images}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def _prepared(model, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the file is right with BatchNorm too
        if form == "deployed":
            return deploy(model, channels_last=False)  # a file has no memory format
        try:
            return fold(model, batch_norm=True)
        except ConversionError:  # for a model that cannot be traced; other errors are raised again
            return fold(model)


def _write(model, path, call, dynamic):
    is_onnx = path.suffix == ".onnx"
    if is_onnx:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _import_onnx(package)
        if sum(tensor.nbytes for tensor in model.state_dict().values()) > MAX_ONNX_BYTES:
            raise ConversionError("the model is larger than the 2 GiB that one ONNX file can have")
    sizes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}

    def open_sizes(leaf):
        if not isinstance(leaf, torch.Tensor):
            return None
        axes = [0] if leaf.ndim and len(leaf) == call.batch else []
        axes += [2, 3] if dynamic and leaf.ndim == 4 else []
        return {axis: sizes[axis] for axis in axes}

    shapes = tree_map(open_sizes, call.kwargs or call.args)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of torch and onnxscript
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_onnx:
                program = torch.onnx.export(
                    model, call.args, kwargs=call.kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False
                )
                program.save(path, external_data=False)
            else:
                program = torch.export.export(model, call.args, call.kwargs, dynamic_shapes=shapes)
                torch.export.save(program, path)
    except Exception as error:
        raise ConversionError(f"torch cannot export the model: {first_line(error)}") from error
    finally:
        logging.disable(disabled)


@torch.no_grad()
def _error(run, call, expected):
    try:
        found = [tensor.to(expected[0]) for tensor in tensors_of(run(*call.args, **call.kwargs))]
    except Exception as error:  # runtimes fail in ways of their own
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in call.tensors)
        raise ConversionError(f"the exported file does not take inputs {shapes}: {first_line(error)}") from error
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise ConversionError("the outputs of the exported file have other shapes than the model's")
    return largest_error(found, expected)


def _batch(call: Call, size: int) -> Call:
    """The call with so many images, the given ones repeated."""
    return call.images(torch.arange(size) % max(1, call.batch))


def _larger(call: Call) -> Call:
    """The call with images repeated beyond their edges."""

    def grow(tensor):
        if tensor.ndim != 4:
            return tensor
        height, width = tensor.shape[-2:]
        rows, columns = torch.arange(height + EXTRA_SIZE[0]) % height, torch.arange(width + EXTRA_SIZE[1]) % width
        return tensor[..., rows, :][..., columns]

    return call.map(grow)._replace(source="larger images, as dynamic asks for")


def _import_onnx(package):
    try:
        return importlib.import_module(package)
    except ImportError:
        cure = f"the package {package}: pip install onnx onnxscript onnxruntime"
        raise ConversionError(f"ONNX files need {cure}") from None
