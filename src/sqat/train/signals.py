"""Ctrl-C and SIGTERM as a request to stop cleanly; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from sqat.train.distributed import launched

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignals:
    """A context in which the first SIGINT or SIGTERM calls `stop(reason)`, and a second one does what it did before.
    Outside the main thread it does nothing.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        self.stop = stop
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._restore()
        if error is not None and launched() > 1 and threading.current_thread() is threading.main_thread():
            # The launcher terminates all ranks once one is lost; the error has to be printed first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self.received = signal.Signals(number)
        self.stop(f"{self.received.name} received")

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
