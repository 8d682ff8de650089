"""The folder of a run and its files: checkpoints, log and report. Each file is written completely or not at all."""

import io
import json
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from linearconv_convert.exporting import atomic_file
from linearconv_convert.networks import load_tensors
from training.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KEPT = 2  # newest checkpoints
CHECKPOINT = re.compile(r"checkpoint-(\d{4}|[1-9]\d{4,})(?:-(\d{6}|[1-9]\d{6,}))?\.pt")  # other files are the user's
BEST = "best.pt"
REPORT = "report.json"
LOG = "log.jsonl"
LOCK = "run.lock"
PART = re.compile(r"(checkpoint-[\d-]+|best|report|log)\.\d+\.part\.(pt|json|jsonl)")  # of `atomic_file`
STRUCTURE = {  # entries that a checkpoint must have, and their types
    **dict.fromkeys(("model", "optimizer", "train_loader", "settings", "versions"), dict),
    **dict.fromkeys(("random", "history"), list),
    **dict.fromkeys(("epoch", "batch", "step"), int),
    "train_seconds": float,
    **dict.fromkeys(("loss_sum", "correct"), torch.Tensor),
}


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(data, indent=2) + "\n")


# ---- the folder of a run --------------------------------------------------------------------------------------------


def take_lock(path: Path, wait: bool = False) -> TextIO | None:
    """Return an open file that holds a lock; if another open file holds it, None, or wait for it.

    The operating system releases the lock when the file is closed or its process ends. Without fcntl (Windows) and on
    file systems without locks, every caller gets the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")  # noqa: SIM115  stays open
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    return file


@contextmanager
def open_folder(folder: Path, resume: str = "never", *, numbered: bool = False) -> Iterator[Path]:
    """Yield the folder of a run, created if it does not exist, and keep other runs out of it within the context.

    A folder that holds a run is an error for a new run, which must not overwrite it.

    Args:
        folder: the folder.
        resume: `"never"`: a new run; `"always"`: an existing run; `"auto"`: either.
        numbered: a new run in a folder with a finished run uses the folder with the next number, `folder`-2 and so on;
            a resumed run uses the newest of these folders.

    Raises:
        UsageError: if the folder is in use, holds another run, has no run to resume, or cannot be written.
    """
    if numbered:
        folder = _numbered(folder, resume)
    if resume == "always" and not holds_checkpoint(folder):
        raise UsageError(f"no checkpoint in {folder}: --resume auto begins a new run there")
    try:
        lock = take_lock(folder / LOCK)
    except OSError as error:
        reason = f"the output folder {folder} cannot be written ({error.strerror})"
        raise UsageError(f"{reason}: give another --output") from None
    if lock is None:
        raise UsageError(f"another run uses the folder {folder} at the moment: give another --output")
    with lock:
        if resume == "never" and holds_run(folder):
            state = "a finished run" if (folder / REPORT).exists() else "an unfinished run"
            raise UsageError(f"{folder} holds {state}: give --resume to resume it, or another --output for a new run")
        if fcntl:
            os.register_at_fork(after_in_child=lock.close)  # workers that outlive a killed run must not hold the lock
        for path in folder.iterdir():
            if PART.fullmatch(path.name):  # left by a killed run
                path.unlink()
        yield folder


def _numbered(default, resume):
    """Return the newest of the numbered default folders, or the next one if a new run begins and it is finished."""
    newest = default
    for path in (default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 1000))):
        if not holds_run(path):
            return path if resume == "never" and (newest / REPORT).exists() else newest
        newest = path
    raise UsageError(f"{default} has 999 runs: give another --output")


def holds_run(folder: Path) -> bool:
    """Return True if the folder holds a checkpoint or a log."""
    return holds_checkpoint(folder) or (folder / LOG).exists()


def holds_checkpoint(folder: Path) -> bool:
    """Return True if the folder holds a checkpoint, damaged or not."""
    return bool(_newest_first(folder))


# ---- log and checkpoints --------------------------------------------------------------------------------------------


def write_log(folder: Path, records: list[dict]) -> None:
    """Write the log, one line for each finished epoch."""
    with atomic_file(folder / LOG) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_log(folder: Path) -> list[dict]:
    """Return the records of the log, one per finished epoch."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def save(folder: Path, state: dict, best: bool = False) -> None:
    """Write the checkpoint after an epoch and batches of the next one, with `best` also as best.pt, and the log.

    Older checkpoints except one are deleted.

    Raises:
        OSError: if a file cannot be written; earlier checkpoints are unchanged.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)  # in memory first: torch's own error on a full disk does not name the reason
    within = f"-{state['batch']:06d}" if state["batch"] else ""
    for name in ([BEST] if best else []) + [f"checkpoint-{state['epoch']:04d}{within}.pt"]:
        with atomic_file(folder / name) as part:
            part.write_bytes(buffer.getbuffer())
    write_log(folder, state["history"])
    numbered = [path for path in _newest_first(folder) if path.name != BEST]
    for old in numbered[KEPT:]:
        old.unlink()


def load_newest(folder: Path) -> tuple[dict, Path]:
    """Return the newest undamaged state in `folder`, on the CPU, and its path; best.pt is the last choice.

    Raises:
        UsageError: if no checkpoint is usable.
    """
    for path in _newest_first(folder):
        try:
            state = load_tensors(path)
            wrong = [name for name, kind in STRUCTURE.items() if not isinstance(state.get(name), kind)]
            if wrong:
                raise ValueError(f"without valid {', '.join(wrong)}")
            return state, path
        except Exception as error:  # a damaged file fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{path} is damaged ({reason[:120]}): trying an earlier checkpoint")
    raise UsageError(f"no usable checkpoint in {folder}: begin anew with another --output")


def _newest_first(folder):
    """Return the checkpoints, sorted by epoch and batch, then best.pt."""
    matches = [match for path in folder.glob("*.pt") if (match := CHECKPOINT.fullmatch(path.name))]
    matches.sort(key=lambda match: (int(match[1]), int(match[2] or 0)), reverse=True)
    return [folder / match.string for match in matches] + list(folder.glob(BEST))


# ---- random generators ----------------------------------------------------------------------------------------------


def seed_random(seed: int) -> None:
    """Seed the random generators of Python, NumPy, torch and the devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes no larger seed
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """Return the states of the random generators of Python, NumPy, torch and the device."""
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
