"""Errors and signals that end a run early. Each error has an exit code and prints one line on stderr."""

import io
import os
import signal
import sys
import threading
import time

from dataloaders import DataError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT = 2.0  # seconds in which a launcher and the system may both send a signal


class RunError(Exception):
    """An error that ends a run; its message is one line that says what is wrong and what to do."""

    code = 2


class UsageError(RunError):
    """The run is impossible with the given options."""


class NotFinite(RunError):
    """A loss, gradient or weight is infinite or not a number; the message names the step and the layers."""

    code = 3


class Stopped(RunError):
    """The run was stopped by a signal, and has saved a checkpoint.

    Args:
        number: number of the signal; the exit code is 128 + number.
        where: the message's description of the checkpoint.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {where}")
        self.code = 128 + number


EXPECTED = (RunError, DataError, OSError, MemoryError, KeyboardInterrupt)  # any other exception is a bug


def out_of_memory(error: BaseException) -> bool:
    """Return True for the errors of Python, NumPy and torch about memory; torch's errors are general RuntimeErrors."""
    return isinstance(error, MemoryError) or "ried to allocate" in str(error)


def report_failure(error: BaseException, program: str) -> int:
    """Print an expected exception as one line on stderr, and return its exit code."""
    text, code = str(error), getattr(error, "code", 2)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
    elif isinstance(error, KeyboardInterrupt):  # before or after training
        text, code = "interrupted", 128 + signal.SIGINT
    elif out_of_memory(error):
        text = f"not enough memory ({text}): reduce the batch size, the image size or the network"
    print(f"{program}: {' '.join(text.split())}", file=sys.stderr)
    return code


def prepare_output() -> None:
    """Make print work without stdout or stderr, and for characters that the terminal does not have."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `command >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for as long as the process lasts
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class StopSignals:
    """Within the context, record SIGINT or SIGTERM in `asked`.

    A signal that follows within two seconds is a repetition; a later one ends the process at once. After a signal the
    handlers remain, so that repetitions do not disturb the end of the process.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._since = 0.0
        self._before = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self.asked is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _remember(self, number, _):
        if self.asked is None:
            self.asked, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
