"""Errors and signals that end a run early. Each error has an exit code and prints one line on stderr."""

import io
import os
import signal
import sys
import threading
import time

from dataloaders import DataError
from linearconv_convert.surgery import ConversionError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT = 2.0  # seconds in which a launcher and the system may both send a signal


class RunError(Exception):
    """An error that ends a run with an exit code; its message is one line that says what is wrong and what to do.

    The codes are 2, 3 for numbers that are not finite, and 128 + the number of the signal that has stopped the run.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class UsageError(RunError):
    """The run is impossible with the given options."""


EXPECTED = (RunError, DataError, ConversionError, OSError, MemoryError, KeyboardInterrupt)  # all others are bugs


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
    """Within the context, record SIGINT or SIGTERM in `asked`; later than two seconds after it, one ends the process.

    After a signal the handlers remain, so that repetitions do not disturb the end of the process.
    """

    def __init__(self) -> None:
        self.asked = 0  # number of the signal
        self._since = 0.0
        self._before = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if not self.asked:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _remember(self, number, _):
        if not self.asked:
            self.asked, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
