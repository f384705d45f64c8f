"""Fail-stop: if one rank fails, all ranks exit with its reason.

With MPI alone the others wait forever when a rank raises an exception, hangs, or loses its
launcher. So a rank that fails prints the reason and aborts all ranks, and on each rank a thread
checks how long it has been waiting, and whether the launcher is still running.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from invocupy.distributed.environment import is_root

TIMED_OUT = 75  # exit code, as EX_TEMPFAIL of sysexits.h: try again

_GRACE = 1.0  # seconds in which rank 0 may say the same first
_FORWARD = 0.3  # seconds in which the launcher takes up the last words
_LOOK_EVERY = 0.25


Clock = Callable[[], tuple[Any, str] | None]
"""What a rank waits for, if it does: something that is another one at the next wait, and a name."""

_watch: Watch | None = None


class PeerError(RuntimeError):
    """Another rank has failed and reports the reason; this one only exits."""


def abort_all(text: str, code: int, quiet: bool = False) -> None:
    """Write to standard error; with several ranks, end all of them with an exit code.

    If all ranks fail in the same way, rank 0 writes for them. If ``quiet``, another rank has failed
    and reports the reason.
    """
    time.sleep(5 * _GRACE if quiet else 0 if is_root() else _GRACE)
    if _watch is None:
        with suppress(OSError, ValueError):  # standard error may be closed
            sys.stderr.write(f"{text}\n" if text else "")
    else:
        _watch.end(text, code)


class Watch:
    """Ends all ranks if this one waits too long, and this one if its launcher has died.

    ``abort`` ends all ranks with an exit code; a wait may take ``timeout`` seconds.
    """

    def __init__(self, rank: int, timeout: float, abort: Callable[[int], object]) -> None:
        self.rank, self.timeout, self._abort = rank, timeout, abort
        self._waits, self._what = 0, ""
        self.clocks: list[Clock] = [lambda: (self._waits, self._what) if self._what else None]
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """``call(*arguments)``, which returns when the other ranks have called theirs."""
        self._waits += 1
        self._what = what
        try:
            return call(*arguments)
        finally:
            self._what = ""

    def install(self) -> None:
        """Let uncaught exceptions end all ranks."""
        global _watch
        _watch = self
        sys.excepthook = _uncaught

    def end(self, text: str, code: int) -> NoReturn:
        """Write and end all ranks, now."""
        self._write(text)
        time.sleep(_FORWARD)
        # The library may hang in its own abort, in which another thread is waiting.
        last = threading.Timer(3, os._exit, [code])
        last.daemon = True
        last.start()
        self._abort(code)
        os._exit(code)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # standard error may be closed
            sys.stderr.write("".join(f"[rank {self.rank}] {line}\n" for line in text.splitlines()))
            sys.stderr.flush()

    def _run(self) -> None:
        launcher = _launcher()
        waits: dict[Clock, tuple[Any, float]] = {}
        while True:
            start = time.monotonic()
            time.sleep(_LOOK_EVERY)
            # Count checks, not time, so that a job that was stopped and continued has not waited.
            passed = min(time.monotonic() - start, 4 * _LOOK_EVERY)
            if _launcher() != launcher:
                self._write("invocupy: the launcher has died")
                os._exit(TIMED_OUT)
            for clock in self.clocks:
                try:
                    now = clock()
                except RuntimeError as error:
                    self.end(f"invocupy: {error}", 1)
                if now is None:
                    waits.pop(clock, None)
                    continue
                before, waited = waits.get(clock, (None, 0.0))
                waited = waited + passed if now[0] == before else 0.0
                waits[clock] = now[0], waited
                if waited > self.timeout:
                    time.sleep(_GRACE if self.rank else 0)
                    self.end(
                        f"invocupy: waited {self.timeout:g} s for the other ranks in {now[1]}: "
                        "a rank is stuck, or needs a longer --comm-timeout",
                        TIMED_OUT,
                    )


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    abort_all(text, 130 if issubclass(kind, KeyboardInterrupt) else 1, isinstance(error, PeerError))


def _launcher() -> tuple[int, ...]:
    """The processes that started this one: they change when one has died."""
    import psutil

    parent = os.getppid()
    if not psutil.pid_exists(parent):  # on Windows its number stays
        return ()
    with suppress(psutil.Error):
        process = psutil.Process(parent)
        if process.name().startswith("hydra"):  # of MPICH's mpiexec: a proxy that starts the ranks
            return parent, process.ppid()
    return (parent,)
