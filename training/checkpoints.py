"""Files of a training run that must never be lost or half written: checkpoints, the log, the report.

A file is written under a temporary name, flushed to disk and renamed, so that what stands under its own name is whole.
"""

import io
import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import torch

from training.options import UsageError

KEPT = 2  # newest checkpoints that stay
PATTERN = "checkpoint-*.pt"
BEST = "best.pt"
REPORT = "report.json"
LOG = "log.jsonl"


def write_whole(path, write):
    """Let `write(file)` fill a binary file that appears at `path` complete or not at all."""
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


def write_json(path, data):
    write_whole(path, lambda file: file.write((json.dumps(data, indent=2) + "\n").encode()))


def save(folder, state, best=False):
    """Write the checkpoint after `state["epoch"]` epochs and `state["batch"]` batches of the next one, and drop all but
    the newest; with `best`, keep a copy of it.

    Returns:
        Path: the checkpoint.

    Raises:
        OSError: where the folder or the disk does not take it; the checkpoints before it stay as they are.
    """
    within = f"-{state['batch']:06d}" if state["batch"] else ""
    path = folder / f"checkpoint-{state['epoch']:04d}{within}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)  # in memory first: on a full disk torch itself would not say what is wrong
    write_whole(path, lambda file: file.write(buffer.getbuffer()))
    if best:
        with open(path, "rb") as source:
            write_whole(folder / BEST, lambda file: shutil.copyfileobj(source, file))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_newest(folder, warn=print):
    """The newest checkpoint in `folder` that can be read; a damaged one is named through `warn` and passed over.

    Returns:
        tuple[dict, Path]: what :func:`save` was given, on the CPU, and the file it came from.

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


def check_settings(saved, wanted, path, allowed=()):
    """Refuse a checkpoint of another run.

    Args:
        allowed (sequence of str): settings that may differ.

    Returns:
        list[str]: the settings that differ.

    Raises:
        UsageError: naming every other setting that differs.
    """
    different = [key for key in wanted if saved.get(key) != wanted[key]]
    refused = [key for key in different if key not in allowed]
    if refused:
        changes = ", ".join(f"{key} {saved.get(key)} there, {wanted[key]} here" for key in refused)
        raise UsageError(f"{path} is a checkpoint of another run ({changes}): resume with its options")
    return different


def random_state(device):
    """The state of every random generator: python's, numpy's, torch's, and the device's."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state, device):
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def open_folder(output, default, resume, must_exist=True):
    """Find or make the folder of a run.

    A folder that holds a run is never written over: the default folder of a new run gets a number, one that was asked
    for is refused. Resuming looks at the newest of the numbered ones.

    Args:
        output (str | None): the folder that was asked for.
        default (Path): where the run goes otherwise.
        resume (bool): whether a run is to go on.
        must_exist (bool): whether there must then be one.

    Raises:
        UsageError: where the folder is taken, missing (to resume), or cannot be written.
    """
    folder = Path(output) if output else default
    if not output:
        numbered = [default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 1000))]
        free = next(path for path in numbered if not _holds_run(path))
        folder = numbered[max(0, numbered.index(free) - 1)] if resume else free
    if resume:
        if must_exist and not _holds_run(folder):
            raise UsageError(f"no checkpoint in {folder}: leave out --resume to start from the beginning")
    elif _holds_run(folder):
        raise UsageError(f"{folder} holds a run already: give --resume to go on with it, or another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "writable", lambda file: file.write(b"1"))
        (folder / "writable").unlink()
    except OSError as error:
        reason = f"the output folder {folder} cannot be written ({error.strerror})"
        raise UsageError(f"{reason}: give another --output") from None
    return folder


def append_log(folder, record):
    with open(folder / LOG, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_log(folder, records):
    """Write the log anew: a resumed run does again what the log may have of later epochs, or half of a line."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(folder / LOG, lambda file: file.write(lines.encode()))


def _newest_first(folder):
    def progress(path):
        return [int(number) for number in re.findall(r"\d+", path.stem)]  # [epoch] or [epoch, batch]

    return sorted(folder.glob(PATTERN), key=progress, reverse=True)


def holds_checkpoint(folder):
    return any(True for _ in folder.glob(PATTERN))


def _holds_run(folder):
    return folder.is_dir() and any(True for pattern in (PATTERN, LOG) for _ in folder.glob(pattern))
