"""A run of a sweep: what it is called, how far it is, and the lock that keeps it from going twice at a time.

The operating system holds the lock, so that a process that is killed leaves none behind.
"""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from training.checkpoints import REPORT, holds_checkpoint, read_log
from training.errors import UsageError

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Run:
    """One call of the training script.

    Args:
        name: of the run and its folder.
        script: of models/.
        setting: the variant and what else sets the run apart from its neighbours, as options.
        varied: the latter alone.
        dataset: its name, of an imagefolder that of the folder; None where the script chooses.
        arguments: of the script.
        settings: all options that the result depends on.
        defaults: what those are that a result does not have, as it was made before the script had them.
        folder: for report, log and checkpoints.
        command: the call without this machine's paths.
        device: that the run asks for.
    """

    name: str
    script: Path
    setting: str
    varied: str
    dataset: str | None
    arguments: list[str]
    settings: dict[str, object]
    defaults: dict[str, object]
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
            self.check(json.loads((self.folder / SETTINGS).read_text()), self.folder)
        elif state != "to do":
            raise UsageError(f"{self.folder} holds a run of no sweep: give another --name")
        return state

    def check(self, saved: dict[str, object], where: Path) -> None:
        """Compare the settings with those that were saved.

        Raises:
            UsageError: naming those that differ.
        """
        saved = self.defaults | saved
        if different := [key for key in self.settings if saved[key] != self.settings[key]]:
            changes = ", ".join(f"{key} {saved[key]} there, {self.settings[key]} here" for key in different)
            raise UsageError(f"{where} holds a run of other settings ({changes}): give another --name")

    def entry(self) -> dict[str, object]:
        """Return what the result file keeps of a run that is done."""
        report = json.loads((self.folder / REPORT).read_text()) | {"command": self.command}
        kept = {"run": self.name, "setting": self.setting, "varied": self.varied, "dataset": self.dataset}
        return kept | {"settings": self.settings, "report": report, "log": read_log(self.folder)}


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
