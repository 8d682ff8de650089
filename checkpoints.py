"""Files of a training run that must never be lost or half written: checkpoints, the log, the report.

A file is written under a temporary name, flushed to disk and renamed, so that what stands under its own name is whole.
"""

import json
import os
import shutil
from pathlib import Path

import torch

from options import UsageError

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
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, data):
    write_whole(path, lambda file: file.write((json.dumps(data, indent=2) + "\n").encode()))


def save(folder, state, best=False):
    """Write the checkpoint of epoch `state["epoch"]` and drop all but the newest; with `best`, keep a copy of it.

    Raises:
        OSError: where the folder or the disk does not take it; the checkpoints before it stay as they are.
    """
    path = folder / f"checkpoint-{state['epoch']:04d}.pt"
    write_whole(path, lambda file: torch.save(state, file))
    if best:
        with open(path, "rb") as source:
            write_whole(folder / BEST, lambda file: shutil.copyfileobj(source, file))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


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
            state["epoch"], state["settings"]  # noqa: B018  another program's file has none
            return state, path
        except Exception as error:  # a damaged zip or pickle fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"{path} is damaged ({reason[:80]}): trying the one before")
    raise UsageError(f"no usable checkpoint in {folder}: leave out --resume to start from the beginning")


def check_settings(saved, wanted, path):
    """Refuse a checkpoint of another run.

    Raises:
        UsageError: naming every setting that differs.
    """
    different = [key for key in wanted if saved.get(key) != wanted[key]]
    if different:
        changes = ", ".join(f"{key} {saved.get(key)} there, {wanted[key]} here" for key in different)
        raise UsageError(f"{path} is a checkpoint of another run ({changes}): resume with its options")


def open_folder(output, default, resume):
    """Find or make the folder of a run.

    A folder that holds a run is never written over: the default folder of a new run gets a number, one that was asked
    for is refused. Resuming looks at the newest of the numbered ones.

    Args:
        output (str | None): the folder that was asked for.
        default (Path): where the run goes otherwise.
        resume (bool): whether a run is to go on.

    Raises:
        UsageError: where the folder is taken, missing (to resume), or cannot be written.
    """
    folder = Path(output) if output else default
    if not output:
        numbered = [default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 1000))]
        free = next(path for path in numbered if not _holds_run(path))
        folder = numbered[max(0, numbered.index(free) - 1)] if resume else free
    if resume:
        if not _holds_run(folder):
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


def cut_log(folder, epoch):
    """Drop what the log says of epochs after `epoch`, which a resumed run does again."""
    path = folder / LOG
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["epoch"] <= epoch]
        write_whole(path, lambda file: file.write("".join(line + "\n" for line in lines).encode()))


def _newest_first(folder):
    return sorted(folder.glob(PATTERN), reverse=True)


def _holds_run(folder):
    return folder.is_dir() and any(True for pattern in (PATTERN, LOG) for _ in folder.glob(pattern))
