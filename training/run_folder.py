"""The folder of a run: found or made, never written over, and the log that grows in it."""

import json
import os
from pathlib import Path

from training.checkpoints import PATTERN
from training.errors import UsageError
from training.files import write_whole

REPORT = "report.json"
LOG = "log.jsonl"


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
