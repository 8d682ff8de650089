"""A few runs of a sweep at a time brought to their end, none of them twice, whatever interrupts them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from experiments.sweep_results import Results
from experiments.sweep_runs import SETTINGS, Run, take_lock
from training.checkpoints import REPORT, write_json

OUTPUT = "output.txt"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.1  # seconds


@dataclass
class Job:
    """A run under way."""

    run: Run
    lock: TextIO
    gpu: str | None
    process: subprocess.Popen
    began: float


class Runner:
    """Bring runs to their end, several at a time.

    A run's process inherits the lock: should this process be killed, the run goes on and is not started again.

    Args:
        runs: in the order in which they start.
        results: says which are done (`holds`), and is told of those that end (`add`).
        jobs: how many go side by side.
        gpus: to spread them over, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, runs: Sequence[Run], results: Results, jobs: int, gpus: Sequence[str]) -> None:
        self.runs, self.results, self.jobs, self.gpus = runs, results, jobs, gpus
        self.threads = max(1, cores() // jobs)
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():
            self.threads = min(self.threads, int(os.environ["OMP_NUM_THREADS"]) or 1)
        self.todo = [run for run in runs if not results.holds(run)]
        self.ended = len(runs) - len(self.todo)
        self.running, self.failed, self.seconds, self.signals, self.waiting = [], [], [], [], set()

    def go(self) -> None:
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
                self.results.add([run])
                self.ended += 1
                self._say("done", f"{run.name}, by another process")
                lock.close()
            else:
                self._start(run, lock)

    def _start(self, run, lock):
        busy = [job.gpu for job in self.running]
        gpu = min(self.gpus, key=busy.count, default=None)
        run.folder.mkdir(exist_ok=True)
        write_json(run.folder / SETTINGS, run.settings)
        places = ["--output", run.folder.resolve(), "--resume", "auto"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with open(run.folder / OUTPUT, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, run.script, *run.arguments, *places],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],
                process_group=0,  # Ctrl-C reaches it once, through this process
            )
        self.running.append(Job(run, lock, gpu, process, time.monotonic()))
        self._say("start", run.name)

    def _end(self, job):
        self.running.remove(job)
        run, code, seconds = job.run, job.process.returncode, time.monotonic() - job.began
        if code == 0 and run.state() == "done":
            self.results.add([run])
            self.ended += 1
            self.seconds.append(seconds)
            accuracy = json.loads((run.folder / REPORT).read_text())["test_accuracy"]
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


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
