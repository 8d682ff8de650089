"""What a run leaves in its folder: checkpoints, log and report; each file is written whole or not at all."""

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

KEPT = 2  # newest checkpoints that stay
PATTERN = "checkpoint-*.pt"
BEST = "best.pt"
REPORT = "report.json"
LOG = "log.jsonl"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write(file)` fill a binary file that appears at `path` complete or not at all.

    Raises:
        OSError: naming the file, where the disk or the folder does not take it; what stood there before stays.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a full disk, which names no file
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON."""
    write_whole(path, lambda file: file.write((json.dumps(data, indent=2) + "\n").encode()))


def open_folder(output: str | Path | None, default: Path, resume: str = "never") -> Path:
    """Return the folder of a run, found or made, that can be written.

    A folder that holds a run is never written over: the default folder of a new run gets a number, one that was asked
    for is refused. Resuming looks at the newest of the numbered ones.

    Args:
        output: the folder that was asked for.
        default: where the run goes otherwise.
        resume: `"never"`: a new run; `"always"`: go on with one that must be there; `"auto"`: either.

    Raises:
        UsageError: where the folder is taken, missing (to resume), or cannot be written.
    """
    folder = Path(output) if output else default
    if not output:
        numbered = [default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 1000))]
        free = next(path for path in numbered if not holds_run(path))
        folder = free if resume == "never" else numbered[max(0, numbered.index(free) - 1)]
    if resume == "always" and not holds_run(folder):
        raise UsageError(f"no checkpoint in {folder}: leave out --resume to start from the beginning")
    if resume == "never" and holds_run(folder):
        raise UsageError(f"{folder} holds a run already: give --resume to go on with it, or another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "writable", lambda file: file.write(b"1"))
        (folder / "writable").unlink()
    except OSError as error:
        reason = f"the output folder {folder} cannot be written ({error.strerror})"
        raise UsageError(f"{reason}: give another --output") from None
    return folder


def holds_run(folder: Path) -> bool:
    """Return True for a folder with a checkpoint or a log."""
    return any(True for pattern in (PATTERN, LOG) for _ in folder.glob(pattern))


def append_log(folder: Path, record: dict) -> None:
    """Add a line to the log."""
    with open(folder / LOG, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_log(folder: Path, records: list[dict]) -> None:
    """Write the log anew: a resumed run does again what the log may have of later epochs, or half of a line."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(folder / LOG, lambda file: file.write(lines.encode()))


def read_log(folder: Path) -> list[dict]:
    """Return the records of the log, one per finished epoch."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def save(folder: Path, state: dict, best: bool = False) -> Path:
    """Write the checkpoint after `state["epoch"]` epochs and `state["batch"]` batches of the next one; return its path.

    All but the newest are dropped; with `best`, a copy of it is kept.

    Raises:
        OSError: where the folder or the disk does not take it; the checkpoints before it stay as they are.
    """
    within = f"-{state['batch']:06d}" if state["batch"] else ""
    path = folder / f"checkpoint-{state['epoch']:04d}{within}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)  # in memory first: on a full disk torch itself would not say what is wrong
    for file_path in (folder / BEST, path) if best else (path,):  # killed in between, a run does that epoch again
        write_whole(file_path, lambda file: file.write(buffer.getbuffer()))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_newest(folder: Path, warn: Callable[[str], object] = print) -> tuple[dict, Path]:
    """Return the newest state in `folder` that can be read, on the CPU, and its path; `warn` of damaged ones before it.

    Raises:
        UsageError: where there is none.
    """
    for path in _newest_first(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state["epoch"], state["settings"], state["random"]  # noqa: B018  another program's file has none
            return state, path
        except Exception as error:  # a damaged zip or pickle fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"{path} is damaged ({reason[:80]}): trying the one before")
    raise UsageError(f"no usable checkpoint in {folder}: leave out --resume to start from the beginning")


def holds_checkpoint(folder: Path) -> bool:
    """Return True for a folder with a checkpoint, damaged or not."""
    return any(True for _ in folder.glob(PATTERN))


def seed_random(seed: int) -> None:
    """Seed every random generator: python's, numpy's, torch's, and the devices'."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """Return the state of every random generator: python's, numpy's, torch's, and the device's."""
    kind, keys, *rest = np.random.get_state()
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), **on_gpu}


def restore_random_state(state: dict, device: torch.device) -> None:
    """Put every random generator where :func:`random_state` found it."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))  # earlier checkpoints have lists
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _newest_first(folder):
    """The checkpoints by the numbers in their names: epoch, or epoch and batch."""
    return sorted(folder.glob(PATTERN), key=lambda path: list(map(int, re.findall(r"\d+", path.stem))), reverse=True)
