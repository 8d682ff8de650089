"""A run of a sweep: what it is called, how far it is, and the lock that keeps it from going twice at a time.

The operating system holds the lock, so that a process that is killed leaves none behind.
"""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from training.checkpoints import holds_checkpoint
from training.errors import UsageError
from training.run_folder import REPORT, read_log

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Run:
    """One call of the training script.

    Args:
        name: of the run and its folder.
        setting: the variant, as options.
        arguments: of the script.
        settings: all options that the result depends on.
        folder: for report, log and checkpoints.
        command: the call without this machine's paths.
        device: that the run asks for.
    """

    name: str
    setting: str
    arguments: list[str]
    settings: dict[str, object]
    folder: Path
    command: str
    device: str

    @property
    def lock(self) -> Path:
        """The file that is locked while the run goes; outside the folder, so that this can be deleted."""
        return self.folder.with_name(self.name + ".lock")

    def state(self) -> str:
        """Return how far the folder is: `"done"`, `"interrupted"` (there is a checkpoint) or `"to do"`.

        Raises:
            UsageError: where the folder holds another run.
        """
        state = "to do"
        if (self.folder / REPORT).exists():
            state = "done"
        elif holds_checkpoint(self.folder):
            state = "interrupted"
        if (self.folder / SETTINGS).exists():
            check_settings(self.settings, json.loads((self.folder / SETTINGS).read_text()), self.folder)
        elif state != "to do":
            raise UsageError(f"{self.folder} holds a run of no sweep: give another --name")
        return state

    def entry(self) -> dict[str, object]:
        """Return what the result file keeps of a run that is done."""
        report = json.loads((self.folder / REPORT).read_text()) | {"command": self.command}
        names = {"run": self.name, "setting": self.setting, "settings": self.settings}
        return names | {"report": report, "log": read_log(self.folder)}


def check_settings(settings: dict[str, object], saved: dict[str, object], where: Path) -> None:
    """Compare the settings of a run with those that were saved.

    Raises:
        UsageError: naming those that differ.
    """
    if different := [key for key in settings if saved.get(key) != settings[key]]:
        changes = ", ".join(f"{key} {saved.get(key)} there, {settings[key]} here" for key in different)
        raise UsageError(f"{where} holds a run of other settings ({changes}): give another --name")


def take_lock(path: Path) -> TextIO | None:
    """Return an open file that holds the lock until it is closed or its process dies; None where another has it."""
    file = open(path, "w")  # noqa: SIM115  stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Return True while a process holds the lock."""
    lock = take_lock(path) if path.exists() else None
    if lock:
        lock.close()
    return path.exists() and lock is None
