"""Signals that stop a training after the current step, which is saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = "SIGTERM", "SIGHUP", "SIGBREAK"  # Windows has the first and the last one
_POLITE = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a signal from a scheduler; the current step was finished and saved.

    ``signal`` is its number: by convention the exit code of the program is 128 plus that.
    """

    signal: int = signal.SIGINT


class Asked:
    """Whether a signal has asked the training to stop, and which one came first."""

    signal: int | None = None
    since = 0.0

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def interrupts(grace: float) -> Iterator[Asked]:
    """A context in which the first signal is only recorded, until a second Ctrl-C.

    Ctrl-C more than ``grace`` seconds after the first signal has its usual effect. This holds in
    the main thread only. Signals other than Ctrl-C are changed only if they would end the process,
    so handlers of the caller and ignored signals stay as they are.
    """
    asked = Asked()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *_POLITE):
            handler = signal.getsignal(number)
            # others were switched off by the parent process, or are handled by the caller
            if callable(handler) if number == signal.SIGINT else handler == signal.SIG_DFL:
                before[number] = handler

    def note(number: int, frame: Any) -> None:
        if asked.signal is None:
            asked.signal, asked.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - asked.since >= grace:
            before[number](number, frame)

    try:
        for number in before:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
