"""The runs of a sweep: what each has reached, and a few at a time brought to their end, none of them twice.

A run that goes is locked by the operating system, so that a process that is killed leaves no lock behind.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from training.checkpoints import PATTERN
from training.files import write_json
from training.run_folder import LOG, REPORT
from training.options import UsageError

SETTINGS, OUTPUT = "settings.json", "output.txt"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Run:
    """One call of the training script."""

    name: str
    setting: str  # the variant, as options
    arguments: list
    settings: dict  # all options that the result depends on
    folder: Path
    command: str  # without this machine's paths
    device: str

    @property
    def lock(self):
        return self.folder.with_name(self.name + ".lock")  # outside the folder, so that this can be deleted

    def state(self):
        """`"done"`, `"interrupted"` (there is a checkpoint) or `"to do"`.

        Raises:
            UsageError: where the folder holds another run.
        """
        report, started = (self.folder / REPORT).exists(), any(self.folder.glob(PATTERN))
        try:
            saved = json.loads((self.folder / SETTINGS).read_text())
        except FileNotFoundError:
            if report or started:
                raise UsageError(f"{self.folder} holds a run of no sweep: give another --name") from None
            return "to do"
        different = [key for key in self.settings if saved.get(key) != self.settings[key]]
        if different:
            changes = ", ".join(f"{key} {saved.get(key)} there, {self.settings[key]} here" for key in different)
            raise UsageError(f"{self.folder} holds a run of other settings ({changes}): give another --name")
        return "done" if report else "interrupted" if started else "to do"

    def entry(self):
        report = json.loads((self.folder / REPORT).read_text())
        return {"run": self.name, "setting": self.setting, "report": report | {"command": self.command}}


def take_lock(path):
    """An open file that holds the lock until it is closed or its process dies; None where another process has it."""
    file = open(path, "w")  # stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path):
    lock = take_lock(path) if path.exists() else None
    if lock:
        lock.close()
    return path.exists() and lock is None


@dataclass
class Job:
    run: Run
    lock: object
    gpu: str | None
    process: subprocess.Popen | None = None
    began: float = 0.0


class Runner:
    """Brings runs to their end, `jobs` at a time.

    A run's process inherits the lock: should this process be killed, the run goes on and is not started again.
    """

    def __init__(self, script, runs, jobs, gpus):
        self.script, self.runs, self.jobs, self.gpus = script, runs, jobs, gpus
        self.threads = max(1, cores() // jobs)
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():
            self.threads = min(self.threads, int(os.environ["OMP_NUM_THREADS"]) or 1)
        self.todo = [run for run in runs if run.state() != "done"]
        self.ended = len(runs) - len(self.todo)
        self.running, self.failed, self.seconds, self.signals, self.waiting = [], [], [], [], set()

    def go(self):
        """Run until all have ended, or those under way have after a signal, which is handed on to them."""
        ours = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, lambda number, _: self.signals.append(number)) for number in ours}
        told = 0
        try:
            while self.running or (self.todo and not self.signals):
                for job in list(self.running):
                    if job.process.poll() is not None:
                        self._end(job)
                if not self.signals:
                    self._start_what_fits()
                elif told < len(self.signals):  # a second signal does not wait for them
                    for job in self.running:
                        job.process.send_signal(signal.SIGKILL if told else self.signals[0])
                    told = len(self.signals)
                if self.running or self.todo:
                    time.sleep(POLL)
        finally:
            for job in self.running:  # only after an error here
                job.process.terminate()
                job.process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_what_fits(self):
        for run in list(self.todo):
            if len(self.running) >= self.jobs or self.signals:
                return
            run.lock.parent.mkdir(parents=True, exist_ok=True)
            lock = take_lock(run.lock)
            if lock is None:
                if run.name not in self.waiting:
                    self._say("wait", f"{run.name}: another process runs it")
                self.waiting.add(run.name)
                continue
            self.todo.remove(run)
            if run.state() == "done":
                self.ended += 1
                self._say("done", f"{run.name}, by another process")
                lock.close()
            else:
                self._start(run, lock)

    def _start(self, run, lock):
        busy = [job.gpu for job in self.running]
        job = Job(run, lock, min(self.gpus, key=busy.count, default=None))
        resume = run.state() == "interrupted"
        run.folder.mkdir(exist_ok=True)
        if not resume:
            (run.folder / LOG).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        write_json(run.folder / SETTINGS, run.settings)
        command = [sys.executable, self.script.resolve(), *run.arguments, "--output", run.folder.resolve()]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if job.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = job.gpu
        with open(run.folder / OUTPUT, "ab" if resume else "wb") as output:
            job.process = subprocess.Popen(
                command + ["--resume"] * resume,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],
                process_group=0,  # Ctrl-C reaches it once, through this process
            )
        job.began = time.monotonic()
        self.running.append(job)
        self._say("go on" if resume else "start", run.name)

    def _end(self, job):
        self.running.remove(job)
        run, code, seconds = job.run, job.process.returncode, time.monotonic() - job.began
        if code == 0 and run.state() == "done":
            self.ended += 1
            self.seconds.append(seconds)
            accuracy = run.entry()["report"]["test_accuracy"]
            self._say("done", f"{run.name}, test accuracy {accuracy:.2f} %, {_clock(seconds)}{self._time_left()}")
        elif self.signals:
            self._say("stop", run.name)
        else:
            self.ended += 1
            self.failed.append(run.name)
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            lines = (run.folder / OUTPUT).read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            self._say("FAIL", f"{run.name}, {how}: {last}")
        job.lock.close()

    def _time_left(self):
        left = len(self.runs) - self.ended
        work = left * sum(self.seconds) / len(self.seconds)
        work -= sum(time.monotonic() - job.began for job in self.running)
        return f", about {_clock(max(0, work) / min(self.jobs, left))} left" if left else ""

    def _say(self, what, text):
        print(f"[{self.ended}/{len(self.runs)}] {what:5s} {text}", flush=True)


def _clock(seconds):
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
