"""Networks as files that run elsewhere: ONNX, and what torch.export saves."""

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from linearconv_convert.folding import fold
from linearconv_convert.surgery import ConversionError, copy_of, first_line

FORMS = ("features", "folded")
TOLERANCE = 1e-4  # largest difference over the largest magnitude of the outputs
LARGEST_FILE = 2**31 - 2**20  # bytes of weights that one ONNX file takes


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked."""

    path: Path
    form: str  # of the network in it, one of `FORMS`
    bytes: int
    error: float  # largest difference from PyTorch's outputs, relative to the largest magnitude of these


def export(model: nn.Module, path: str | Path, example_input: torch.Tensor, form: str = "features") -> Exported:
    """Write a model to a file that takes batches of any size, and check it against the model.

    The model is exported in eval mode. BatchNorm is folded where it follows a convolution, if the model can be traced.

    Args:
        model: any model of one image tensor and one output tensor, with LinearConv layers or not.
        path: ending in `.onnx` for ONNX, run by onnxruntime for the check, or in `.pt2` for torch.export's own
            format. A file that stands there is replaced once the new one has been checked.
        example_input: images (N, C, H, W); all but N is fixed by it.
        form: `"features"` keeps LinearConv layers factorised, small and fast; `"folded"` writes plain convolutions.

    Returns:
        The file, its bytes, its largest relative error at batches of 1 and 7.

    Raises:
        ConversionError: for another ending or form, missing packages, a model that cannot be exported, or outputs that
            differ by more than 1e-4.
    """
    path = Path(path)
    if form not in FORMS:
        raise ConversionError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if path.suffix not in (".onnx", ".pt2"):
        raise ConversionError(f"{path}: the ending decides the format and must be .onnx or .pt2")
    model = copy_of(model).eval()
    prepared = _prepare(model, form)
    with whole_file(path) as part:
        _write(prepared, part, _resized(example_input, max(2, len(example_input))))
        run = runner(part)
        error = max(_error(model, run, _resized(example_input, batch)) for batch in (1, 7))
        if not error <= TOLERANCE:
            raise ConversionError(f"the exported file differs from the model by {error:.1e} relative to its outputs")
    return Exported(path, form, path.stat().st_size, error)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes `path` at the end of the block, or is removed on an error."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:  # of a full disk, which names no file
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def runner(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function (images) -> outputs that runs an exported file on the CPU."""
    return onnx_runner(path) if path.suffix == ".onnx" else torch.export.load(path).module()


def onnx_runner(path: str | Path, threads: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function (images) -> outputs that runs an ONNX file on the CPU, by as many threads as torch or as given.

    Raises:
        ConversionError: where onnxruntime is missing.
    """
    onnxruntime = _import_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.detach().cpu().numpy()})[0])


def milliseconds(run: Callable[[torch.Tensor], object], images: torch.Tensor, seconds: float = 1.0) -> float:
    """Return the median time of `run(images)`, called for about `seconds`."""
    from torch.utils.benchmark import Timer  # slow to import, and only measuring needs it

    timer = Timer("run(images)", globals={"run": run, "images": images}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def _prepare(model, form):
    factorised = form == "features"
    try:
        return fold(model, batch_norm=True, factorised=factorised)
    except ConversionError:  # of a model that cannot be traced; what else is wrong comes up again
        return fold(model, factorised=factorised)


def _write(model, path, images):
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _import_onnx(package)
        if sum(tensor.nbytes for tensor in model.state_dict().values()) > LARGEST_FILE:
            raise ConversionError("the model is larger than the 2 GiB that one ONNX file holds")
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of every constant that it leaves to the runtime
    try:
        if path.suffix == ".onnx":
            program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            program.save(path, external_data=False)
        else:
            torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), path)
    except Exception as error:
        raise ConversionError(f"torch cannot export the model: {first_line(error)}") from error
    finally:
        log.setLevel(level)


@torch.no_grad()
def _error(model, run, images):
    expected, found = model(images), run(images)
    if not isinstance(expected, torch.Tensor):
        raise ConversionError(f"only models of one output tensor are exported, this gives a {type(expected).__name__}")
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return ((found.to(expected) - expected).abs().max() / scale).item()


def _resized(images, batch):
    """A batch of that many images, the given ones over and over."""
    return images[torch.arange(batch, device=images.device) % len(images)]


def _import_onnx(package):
    try:
        return importlib.import_module(package)
    except ImportError:
        cure = f"the package {package}: pip install onnx onnxscript onnxruntime"
        raise ConversionError(f"ONNX files need {cure}") from None
