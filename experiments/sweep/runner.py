"""Execution of a sweep's runs, several at a time and each of them once, and the result file with their results.

    runs/<name>.json: {"note", "runs": [{"run", "setting", "varied", "dataset", "settings", "report", "log"}, ...]}

A run is locked while its process lives. The operating system holds the lock and releases it when the process is killed.
A run in the result file with the same settings is done, even if its folder is deleted; a setting that is missing in an
older result counts as the default. Runs without settings were written by older programs: tables show these runs, but
they never replace a planned run.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from experiments.results import NUMBER, REPORT, check_types, read_json, read_runs
from training import checkpoints
from training.checkpoints import holds_checkpoint, take_lock, write_json
from training.errors import UsageError
from training.report import ROOT

SETTINGS, OUTPUT = "settings.json", "output.txt"  # files of a run, in addition to the training script's
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.1  # seconds
REPEATS = 2.0  # seconds in which further signals count as the first one: schedulers send theirs several times


@dataclass(frozen=True)
class Run:
    """One call of a training script."""

    name: str  # of the run and of its folder
    script: Path
    setting: str  # the variant and the other options that distinguish the run
    varied: str  # only these other options
    dataset: str | None  # name of the data set; for an imagefolder, the folder's name; None if the script chooses
    arguments: list[str]
    settings: dict[str, object]  # all options that the result depends on
    defaults: dict[str, object]  # values of settings that are missing in older results
    folder: Path  # of report, log and checkpoints
    command: str  # without this machine's paths
    device: str

    @property
    def lock(self) -> Path:
        """The file that is locked during the run. It is outside the folder, so that the folder can be deleted."""
        return self.folder.with_name(self.name + ".lock")

    def state(self) -> str:
        """Return the state of the folder: `"done"`, `"interrupted"` (with a checkpoint) or `"to do"`."""
        state = "to do"
        if (self.folder / checkpoints.REPORT).exists():
            state = "done"
        elif holds_checkpoint(self.folder):
            state = "interrupted"
        if (self.folder / SETTINGS).exists():
            self.check(read_json(self.folder / SETTINGS), self.folder)
        elif state != "to do":
            raise UsageError(f"{self.folder} holds a run of no sweep: give another --name")
        return state

    def check(self, saved: dict[str, object], where: Path) -> None:
        """Raise a UsageError that names the differences if the settings differ from saved settings."""
        saved = self.defaults | saved
        different = [key for key in self.settings if saved.get(key) != self.settings[key]]
        if different:
            changes = ", ".join(f"{key} {saved.get(key)} there, {self.settings[key]} here" for key in different)
            raise UsageError(f"{where} holds a run of other settings ({changes}): give another --name")

    def report(self) -> dict[str, object]:
        """Return the report of a finished run."""
        path = self.folder / checkpoints.REPORT
        report = read_json(path)
        check_types(report, REPORT, path)
        return report

    def entry(self) -> dict[str, object]:
        """Return the entry of a finished run in the result file; a damaged file raises a UsageError."""
        kept = {"run": self.name, "setting": self.setting, "varied": self.varied, "dataset": self.dataset}
        report = self.report() | {"command": self.command}
        try:
            log = checkpoints.read_log(self.folder)
        except ValueError as error:
            raise UsageError(f"{self.folder / checkpoints.LOG} is not a log: {error}") from None
        for epoch in log:
            check_types(epoch, {"test_accuracy": NUMBER}, self.folder / checkpoints.LOG)
        return {**kept, "settings": self.settings, "report": report, "log": log}


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock."""
    lock = take_lock(path) if path.exists() else None
    if lock:
        lock.close()
    return path.exists() and lock is None


class Results:
    """A result file, as last read or written.

    Raises:
        UsageError: if the file is not the result of a sweep.
    """

    def __init__(self, path: Path, plan: Sequence[Run], **kept: object) -> None:
        self.path, self._kept = path, kept
        self._order = {run.name: index for index, run in enumerate(plan)}
        self._read()

    def _read(self):
        self._record = read_runs(self.path) if self.path.exists() else {"note": "", "runs": []}

    @property
    def runs(self) -> list[dict]:
        """The entries of all runs."""
        return self._record["runs"]

    def holds(self, run: Run) -> bool:
        """Return True if the run is done."""
        for entry in self.runs:
            if entry["run"] == run.name and "settings" in entry:
                run.check(entry["settings"], self.path)
                return True
        return False

    def add(self, done: Sequence[Run], note: str | None = None) -> None:
        """Add finished runs; runs already in the file stay unchanged."""
        if all(self.holds(run) for run in done) and note in (None, self._record["note"]):
            return
        with self.locked():
            self._read()
            new = [run.entry() for run in done if not self.holds(run)]
            names = {entry["run"] for entry in new}
            runs = [entry for entry in self.runs if entry["run"] not in names] + new
            runs.sort(key=lambda entry: self._order.get(entry["run"], -1))
            note = self._record["note"] if note is None else note
            self._record = {"note": note, **self._kept, "runs": runs}
            write_json(self.path, self._record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the context, prevent other processes from writing the file and its tables and plot."""
        with take_lock(self.path.with_name(f".{self.path.stem}.lock"), wait=True):
            yield


@dataclass
class Job:
    """A run with its process."""

    run: Run
    lock: TextIO
    gpu: str | None
    process: subprocess.Popen
    began: float


class Runner:
    """Complete runs, several at a time.

    The process of a run inherits its lock: if this process is killed, the run continues and is not started again.
    """

    def __init__(self, runs: Sequence[Run], results: Results, jobs: int, gpus: Sequence[str]) -> None:
        self.runs, self.results, self.jobs, self.gpus = runs, results, jobs, gpus
        self.threads = max(1, cores() // jobs)
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():
            self.threads = min(self.threads, int(os.environ["OMP_NUM_THREADS"]) or 1)
        self.todo = [run for run in runs if not results.holds(run)]
        self.ended = len(runs) - len(self.todo)
        self.running, self.failed, self.signals, self.waiting = [], [], [], set()

    def go(self) -> None:
        """Run until all runs have ended. A signal is passed on to the running processes, and no further run starts."""
        handlers = {}
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                handlers[number] = signal.signal(number, self._on_signal)
        passed_on = 0
        try:
            while self.running or (self.todo and not self.signals):
                for job in list(self.running):
                    if job.process.poll() is not None:
                        self._end(job)
                if not self.signals:
                    self._start_what_fits()
                elif passed_on < len(self.signals):
                    for job in self.running:  # a second signal kills them at once
                        job.process.send_signal(signal.SIGKILL if passed_on else self.signals[0])
                    passed_on = len(self.signals)
                if self.running or self.todo:
                    time.sleep(POLL)
        finally:
            for job in self.running:  # only after an error here
                job.process.terminate()
                job.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number, frame):
        if not self.signals or time.monotonic() > self.signalled + REPEATS:
            self.signals.append(number)
            self.signalled = time.monotonic()

    def _start_what_fits(self):
        for run in list(self.todo):
            if len(self.running) >= self.jobs or self.signals:
                return
            lock = take_lock(run.lock)
            if lock is None:
                if run.name not in self.waiting:
                    self._say("wait", f"{run.name}: another process runs it")
                self.waiting.add(run.name)
                continue
            self.todo.remove(run)
            if run.state() == "done":
                self.results.add([run])
                self.ended += 1
                self._say("done", f"{run.name}, by another process")
                lock.close()
            else:
                self._start(run, lock)

    def _start(self, run, lock):
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        gpu = None
        if self.gpus:
            busy = [job.gpu for job in self.running]
            gpu = environment["CUDA_VISIBLE_DEVICES"] = min(self.gpus, key=busy.count)
        run.folder.mkdir(exist_ok=True)
        write_json(run.folder / SETTINGS, run.settings)
        with open(run.folder / OUTPUT, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, run.script, *run.arguments, "--output", run.folder.resolve(), "--resume", "auto"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C reaches the run only once, through this process
            )
        self.running.append(Job(run, lock, gpu, process, time.monotonic()))
        self._say("start", run.name)

    def _end(self, job):
        self.running.remove(job)
        run, code = job.run, job.process.returncode
        if code == 0 and run.state() == "done":
            self.results.add([run])
            self.ended += 1
            minutes = (time.monotonic() - job.began) / 60
            self._say("done", f"{run.name}, test accuracy {run.report()['test_accuracy']:.2f} %, {minutes:.1f} min")
        elif self.signals:
            self._say("stop", run.name)
        else:
            self.ended += 1
            self.failed.append(run.name)
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            lines = (run.folder / OUTPUT).read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            self._say("FAIL", f"{run.name}, {reason}: {last}")
        job.lock.close()

    def _say(self, event, text):
        print(f"[{self.ended}/{len(self.runs)}] {event:5s} {text}", flush=True)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
