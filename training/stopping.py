"""Signals that ask a run to stop: it finishes the step in hand and saves first."""

import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While the context lasts, remember a first SIGINT or SIGTERM in `asked`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        self.asked = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
