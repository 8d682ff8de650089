"""The files of a run: checkpoints, log and report. Each file is written completely or not at all."""

import io
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from training.errors import UsageError

KEPT = 2  # newest checkpoints
PATTERN = "checkpoint-*.pt"
BEST = "best.pt"
REPORT = "report.json"
LOG = "log.jsonl"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary binary file with `write(file)`, and rename it to `path` when it is complete and on the disk.

    Raises:
        OSError: if the file cannot be written; the error names the file, and an earlier file at `path` is unchanged.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # the error of a full disk names no file
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON."""
    write_whole(path, lambda file: file.write((json.dumps(data, indent=2) + "\n").encode()))


def open_folder(output: str | Path | None, default: Path, resume: str = "never") -> Path:
    """Return the folder of a run, created if it does not exist.

    A run is never overwritten: the default folder of a new run gets a number, and an `output` that holds a run is an
    error. A resumed run uses the newest of the numbered folders.

    Args:
        output: the folder given by the user, or None.
        default: the folder if `output` is None.
        resume: `"never"`: a new run; `"always"`: an existing run; `"auto"`: either.

    Raises:
        UsageError: if the folder holds another run, has no run to resume, or cannot be written.
    """
    folder = Path(output) if output else default
    if not output:
        numbered = [default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 1000))]
        free = next(path for path in numbered if not holds_run(path))
        folder = free if resume == "never" else numbered[max(0, numbered.index(free) - 1)]
    if resume == "always" and not holds_run(folder):
        raise UsageError(f"no checkpoint in {folder}: leave out --resume to start from the beginning")
    if resume == "never" and holds_run(folder):
        raise UsageError(f"{folder} holds a run already: give --resume to continue it, or another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "writable", lambda file: file.write(b"1"))
        (folder / "writable").unlink()
    except OSError as error:
        reason = f"the output folder {folder} cannot be written ({error.strerror})"
        raise UsageError(f"{reason}: give another --output") from None
    return folder


def holds_run(folder: Path) -> bool:
    """Return True if the folder holds a checkpoint or a log."""
    return any(True for pattern in (PATTERN, LOG) for _ in folder.glob(pattern))


def append_log(folder: Path, record: dict) -> None:
    """Append a line to the log."""
    with open(folder / LOG, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_log(folder: Path, records: list[dict]) -> None:
    """Write the whole log. A resumed run thereby removes later epochs, which it repeats, and incomplete lines."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(folder / LOG, lambda file: file.write(lines.encode()))


def read_log(folder: Path) -> list[dict]:
    """Return the records of the log, one per finished epoch."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def save(folder: Path, state: dict, best: bool = False) -> Path:
    """Write the checkpoint after `state["epoch"]` epochs and `state["batch"]` batches of the next one; return its path.

    All but the newest two checkpoints are deleted. With `best`, a copy is saved as best.pt.

    Raises:
        OSError: if the checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    within = f"-{state['batch']:06d}" if state["batch"] else ""
    path = folder / f"checkpoint-{state['epoch']:04d}{within}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)  # in memory first: torch's own error on a full disk does not name the reason
    for file_path in (folder / BEST, path) if best else (path,):  # a run killed in between repeats this epoch
        write_whole(file_path, lambda file: file.write(buffer.getbuffer()))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_newest(folder: Path, warn: Callable[[str], object] = print) -> tuple[dict, Path]:
    """Return the newest readable state in `folder`, on the CPU, and its path; `warn` about damaged checkpoints.

    Raises:
        UsageError: if no checkpoint is readable.
    """
    for path in _newest_first(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state["epoch"], state["settings"], state["random"]  # noqa: B018  files of other programs lack these
            return state, path
        except Exception as error:  # a damaged zip or pickle fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"{path} is damaged ({reason[:80]}): trying the checkpoint before it")
    raise UsageError(f"no usable checkpoint in {folder}: leave out --resume to start from the beginning")


def holds_checkpoint(folder: Path) -> bool:
    """Return True if the folder holds a checkpoint, damaged or not."""
    return any(True for _ in folder.glob(PATTERN))


def seed_random(seed: int) -> None:
    """Seed all random generators: those of Python, NumPy, torch and the devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """Return the state of all random generators: those of Python, NumPy, torch and the device."""
    kind, keys, *rest = np.random.get_state()
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), **on_gpu}


def restore_random_state(state: dict, device: torch.device) -> None:
    """Restore the states returned by :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))  # older checkpoints hold lists
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _newest_first(folder):
    """Return the checkpoints sorted by the numbers in their names: epoch, or epoch and batch."""
    return sorted(folder.glob(PATTERN), key=lambda path: list(map(int, re.findall(r"\d+", path.stem))), reverse=True)
