"""Export of a model to a file, in ONNX or in torch.export's own format."""

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
EXTRA_SIZE = (32, 64)  # additional rows and columns of the images that check dynamic files
MAX_ONNX_BYTES = 2**31 - 2**20  # limit for the weights in one ONNX file


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked."""

    path: Path
    form: str  # form of the network in the file, one of `FORMS`
    bytes: int
    error: float  # largest difference from the outputs of PyTorch, relative to their largest magnitude


def export(
    model: nn.Module, path: str | Path, example_input: object, form: str = "deployed", dynamic: bool = False
) -> Exported:
    """Write a model to a file that accepts batches of any size, and compare the outputs of both.

    The model is exported in eval mode. If the model can be traced, BatchNorm is folded into the preceding convolution.

    Args:
        model: any model, with or without LinearConv layers.
        path: a path that ends in `.onnx` for ONNX, checked by onnxruntime, or in `.pt2` for torch.export's own format.
            An existing file is replaced after the check of the new file.
        example_input: the model's input: images (N, C, H, W), a tuple of all arguments, or a dict of them by name. The
            example fixes all sizes except N.
        form: `"deployed"` writes the result of :func:`deploy`, which is small and fast; `"folded"` writes one
            convolution per layer.
        dynamic: accept images of any height and width too.

    Returns:
        The file, its bytes, and its largest relative error for batches of 1 and 7, with `dynamic` for larger images
        too.

    Raises:
        ConversionError: for another ending or form, for missing packages, for a model that cannot be exported, or for
            outputs that differ by more than 1e-4.
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
    """Check that a model can be exported to a path.

    Raises:
        ConversionError: for an unknown ending or a missing folder.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ConversionError(f"{path}: the ending decides the format and must be .onnx or .pt2")
    if not path.parent.is_dir():
        raise ConversionError(f"{path}: there is no folder {path.parent}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path. The file is renamed to `path` at the end of the block, or removed on an error."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:  # on a full disk, the error lacks the file's name
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def runner(path: Path) -> Callable[..., object]:
    """Return a function of the model's arguments that runs an exported file on the CPU."""
    return onnx_runner(path) if path.suffix == ".onnx" else torch.export.load(path).module()


def onnx_runner(path: str | Path, threads: int | None = None) -> Callable[..., object]:
    """Return a function that runs an ONNX file on the CPU, with torch's or the given number of threads.

    The function takes the model's arguments. It returns the output tensor, or a list if there are several.

    Raises:
        ConversionError: if onnxruntime is not installed.
    """
    onnxruntime = _import_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads do not occupy cores
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*args, **kwargs):
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of((args, kwargs))]
        outputs = [torch.from_numpy(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def milliseconds(run: Callable[[torch.Tensor], object], images: torch.Tensor, seconds: float = 1.0) -> float:
    """Return the median time of `run(images)` over about `seconds` of calls."""
    from torch.utils.benchmark import Timer  # slow import, which only measurements need

    timer = Timer("run(images)", globals={"run": run, "images": images}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def _prepared(model, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the file is correct with BatchNorm too
        if form == "deployed":
            return deploy(model, channels_last=False)  # a file has no memory format
        try:
            return fold(model, batch_norm=True)
        except ConversionError:  # the model cannot be traced; fold raises other errors again
            return fold(model)


def _write(model, path, call, dynamic):
    is_onnx = path.suffix == ".onnx"
    if is_onnx:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _import_onnx(package)
        if sum(tensor.nbytes for tensor in model.state_dict().values()) > MAX_ONNX_BYTES:
            raise ConversionError("the model is larger than the 2 GiB that one ONNX file can have")
    sizes = {0: torch.export.Dim("batch", min=1, max=1 << 20), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}

    def open_sizes(leaf):
        if not isinstance(leaf, torch.Tensor):
            return None
        axes = [0] if leaf.ndim and len(leaf) == call.batch else []
        axes += [2, 3] if dynamic and leaf.ndim == 4 else []
        return {axis: sizes[axis] for axis in axes}

    shapes = tree_map(open_sizes, call.kwargs or call.args)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # from torch and onnxscript
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
    except Exception as error:  # runtimes may raise any error
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in call.tensors)
        raise ConversionError(f"the exported file does not take inputs {shapes}: {first_line(error)}") from error
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise ConversionError("the outputs of the exported file have other shapes than the model's")
    return largest_error(found, expected)


def _batch(call: Call, size: int) -> Call:
    """The call with `size` images, which repeat the given images."""
    return call.images(torch.arange(size) % max(1, call.batch))


def _larger(call: Call) -> Call:
    """The call with larger images, which repeat the given images beyond their edges."""

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
