"""Execution of a sweep's runs, several at a time and each of them once, and the result file with their results.

    runs/<name>.json: {"note", "runs": [{"run", "setting", "varied", "dataset", "settings", "report", "log"}, ...]}

A run is locked while its process lives, even if the sweep is killed. A run in the result file with the same settings is
done, even if its folder is deleted; a setting that is missing in an older result counts as the default. Runs without
settings were written by older programs: tables show these runs, but they never replace a planned run.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch

from experiments.results import check_run, read_json, read_runs
from training.checkpoints import LOG, REPORT, holds_checkpoint, read_log, take_lock, write_json
from training.errors import StopSignals, UsageError
from training.report import ROOT

SETTINGS, OUTPUT = "settings.json", "output.txt"  # files of a run, in addition to the training script's
POLL = 0.1  # seconds
CORES_PER_JOB = 4  # default on a CPU


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
        return self.folder.with_name(f"{self.name}.lock")

    def is_running(self) -> bool:
        """Return True if a process holds the lock."""
        lock = take_lock(self.lock) if self.lock.exists() else None
        if lock:
            lock.close()
        return self.lock.exists() and lock is None

    def state(self) -> str:
        """Return the state of the folder: `"done"`, `"interrupted"` (with a checkpoint) or `"to do"`."""
        state = "to do"
        if (self.folder / REPORT).exists():
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

    def entry(self) -> dict[str, object]:
        """Return the entry of a finished run in the result file; a damaged file raises a UsageError."""
        entry = {"run": self.name, "setting": self.setting, "varied": self.varied, "dataset": self.dataset}
        report = read_json(self.folder / REPORT) | {"command": self.command}
        try:
            log = read_log(self.folder)
        except ValueError as error:
            raise UsageError(f"{self.folder / LOG} is not a log: {error}") from None
        entry |= {"settings": self.settings, "report": report, "log": log}
        check_run(entry, self.folder)
        return entry


class Results:
    """A result file, as last read or written; `runs` are its entries.

    Raises:
        UsageError: if the file is not the result of a sweep.
    """

    def __init__(self, path: Path, plan: Sequence[Run], **kept: object) -> None:
        self.path, self._kept = path, kept
        self._order = {run.name: index for index, run in enumerate(plan)}
        self._read()

    def _read(self):
        record = read_runs(self.path) if self.path.exists() else {"note": "", "runs": []}
        self.note, self.runs = record["note"], record["runs"]

    def holds(self, run: Run) -> bool:
        """Return True if the run is done."""
        for entry in self.runs:
            if entry["run"] == run.name and "settings" in entry:
                run.check(entry["settings"], self.path)
                return True
        return False

    def add(self, done: Sequence[Run], note: str | None = None) -> None:
        """Add finished runs; runs already in the file stay unchanged."""
        if all(map(self.holds, done)) and note in (None, self.note):
            return
        with self.locked():
            self._read()
            new = {run.name: run.entry() for run in done if not self.holds(run)}
            others = [entry for entry in self.runs if entry["run"] not in new]
            self.runs = sorted([*others, *new.values()], key=lambda entry: self._order.get(entry["run"], -1))
            self.note = self.note if note is None else note
            write_json(self.path, {"note": self.note, **self._kept, "runs": self.runs})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the context, prevent other processes from writing the file and its tables and plot."""
        with take_lock(self.path.with_name(f".{self.path.stem}.lock"), wait=True):
            yield


class Runner:
    """Complete runs, several at a time, each by a process that a thread waits for."""

    def __init__(self, runs: Sequence[Run], results: Results, jobs: int | None = None) -> None:
        self.runs, self.results, self.stop = runs, results, StopSignals()
        device = runs[0].device if runs else "cpu"
        gpus = gpus_for(device)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.jobs = jobs or len(gpus) or (max(1, cores // CORES_PER_JOB) if device == "cpu" else 1)
        self.gpus = [*islice(cycle(gpus), self.jobs)]  # not in use
        self.threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // self.jobs))
        self.ended = {run.name for run in runs if results.holds(run)}
        self.failed, self.processes = [], []

    def go(self) -> int:
        """Run until all runs have ended, or until a signal, which is passed on to the runs; return the exit code."""
        total, signalled = len(self.runs), set()
        print(f"{total} runs, {len(self.ended)} done; {self.jobs} at a time, threads of each: {self.threads}")
        with self.stop, ThreadPoolExecutor(self.jobs) as pool:
            # Runs that another process runs come last.
            steps = [pool.submit(self._complete, run, wait) for wait in (False, True) for run in self.runs]
            while not all(step.done() for step in steps):
                time.sleep(POLL)
                for process in [*self.processes] if self.stop.asked else ():
                    if process not in signalled:
                        process.send_signal(self.stop.asked)
                        signalled.add(process)
        for step in steps:
            step.result()  # raises the errors of the threads
        if self.stop.asked:
            done = sum(map(self.results.holds, self.runs))
            print(f"interrupted: {done} of {total} runs are done; the same command resumes", file=sys.stderr)
            return 128 + self.stop.asked
        if self.failed:
            print(f"{len(self.failed)} of {total} runs failed: {', '.join(self.failed)}", file=sys.stderr)
            return 1
        return 0

    def _complete(self, run, wait):
        """Complete a run, with `wait` also one that another process runs at the moment."""
        while run.name not in self.ended and not self.stop.asked:
            if lock := take_lock(run.lock):
                with lock:
                    if run.state() == "done":
                        self._done(run, "by another process")
                    else:
                        self._train(run, lock)
                return
            if not wait:
                self._say("wait", f"{run.name}: another process runs it")
                return
            time.sleep(POLL)

    def _train(self, run, lock):
        environment = os.environ | {"OMP_NUM_THREADS": self.threads, "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        gpu = self.gpus.pop(0) if self.gpus else None
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        run.folder.mkdir(exist_ok=True)
        write_json(run.folder / SETTINGS, run.settings)
        self._say("start", run.name)
        start = time.monotonic()
        with open(run.folder / OUTPUT, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, run.script, *run.arguments, "--output", run.folder.resolve(), "--resume", "auto"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],  # the process keeps the lock, also after the end of the sweep
                start_new_session=True,  # Ctrl-C reaches the run only once, through this process
            )
        self.processes.append(process)
        code = process.wait()
        self.processes.remove(process)
        self.gpus += [gpu] if gpu else []
        if code == 0 and run.state() == "done":
            minutes, report = (time.monotonic() - start) / 60, read_json(run.folder / REPORT)
            self._done(run, f"test accuracy {report['test_accuracy']:.2f} %, {minutes:.1f} min")
        elif self.stop.asked:
            self._say("stop", run.name)
        else:
            self.ended.add(run.name)
            self.failed.append(run.name)
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            lines = (run.folder / OUTPUT).read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            self._say("FAIL", f"{run.name}, {reason}: {last}")

    def _done(self, run, how):
        self.results.add([run])
        self.ended.add(run.name)
        self._say("done", f"{run.name}, {how}")

    def _say(self, event, text):
        print(f"[{len(self.ended)}/{len(self.runs)}] {event:5s} {text}", flush=True)


def gpus_for(device: str) -> list[str]:
    """Return the GPUs for the runs, named as in CUDA_VISIBLE_DEVICES; empty if the user chose the device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count() if device == "cuda" else 0
    return (visible.split(",") if visible else [str(index) for index in range(count)])[:count]
