"""Files that are never half written.

A file is written under a temporary name, flushed to disk and renamed, so that what stands under its own name is whole.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
