"""The result file of a sweep: settings, report and log of every run that is done, added to as runs end.

    results/<name>.json: {"note", "runs": [{"run", "setting", "varied", "dataset", "settings", "report", "log"}, ...]}

A run that stands there with the same settings is done, also when its folder is gone; an option that it lacks, being
older than that option, counts as left at its default. Runs without settings are of earlier programs: they are shown in
tables, and never taken for a run that is asked for.
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.sweep_runs import Run
from training.checkpoints import write_json
from training.errors import UsageError


class Results:
    """A result file, as it was when last read or written.

    Args:
        path: of the file.
        lock: a file that processes lock while they write.
        plan: runs of the sweep, which stand in the file in their order.

    Raises:
        UsageError: where the file is not one of a sweep.
    """

    def __init__(self, path: Path, lock: Path, plan: Sequence[Run]) -> None:
        self.path, self._lock = path, lock
        self._order = {run.name: index for index, run in enumerate(plan)}
        self._read()

    def _read(self):
        self._record = json.loads(self.path.read_text()) if self.path.exists() else {"note": "", "runs": []}
        if not {"note", "runs"} <= set(self._record):
            raise UsageError(f"{self.path} is not of a sweep: give another --name")

    @property
    def runs(self) -> list[dict]:
        """What is kept of each run."""
        return self._record["runs"]

    def holds(self, run: Run) -> bool:
        """Return True where the run is done.

        Raises:
            UsageError: where the file holds a run of that name and other settings.
        """
        found = next((kept for kept in self.runs if kept["run"] == run.name and "settings" in kept), None)
        if found:
            run.check(found["settings"], self.path)
        return found is not None

    def add(self, done: Sequence[Run], note: str | None = None) -> None:
        """Add runs that have ended; those that stand in the file stay as they are.

        Args:
            done: runs; of those that the file does not hold the folder has the report.
            note: what the data are; left out, the file's stays.
        """
        if all(self.holds(run) for run in done) and note in (None, self._record["note"]):
            return
        with self.locked():
            self._read()
            new = [run.entry() for run in done if not self.holds(run)]
            names = {entry["run"] for entry in new}
            runs = [kept for kept in self.runs if kept["run"] not in names] + new
            runs.sort(key=lambda kept: self._order.get(kept["run"], -1))
            self._record = {"note": self._record["note"] if note is None else note, "runs": runs}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing the file, or what is made from it, while the context lasts."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with open(self._lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
