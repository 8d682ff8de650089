"""Errors and signals that end a run early. Each error has an exit code and prints one line on stderr."""

import signal
import sys
import threading

from dataloaders import DataError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunError(Exception):
    """An error that ends a run; its message is one line that says what is wrong and what to do."""

    code = 2


class UsageError(RunError):
    """The run is impossible with the given options."""


class NotFinite(RunError):
    """A loss or gradient is infinite or not a number; the message names the step and the layers."""

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


EXPECTED = (RunError, DataError, OSError, KeyboardInterrupt)  # any other exception is a bug


def report_failure(error: BaseException, program: str) -> int:
    """Print an expected exception as one line on stderr, and return its exit code."""
    text, code = str(error), getattr(error, "code", 2)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
    elif isinstance(error, KeyboardInterrupt):  # before or after training
        text, code = "interrupted", 128 + signal.SIGINT
    print(f"{program}: {' '.join(text.split())}", file=sys.stderr)
    return code


class StopSignals:
    """Within the context, record the first SIGINT or SIGTERM in `asked`; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        self.asked = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
