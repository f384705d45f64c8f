"""A line for those who wait for CPU kernels to be compiled, at their first use on a machine."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from invocupy import backends

_PATIENCE = 1.0  # seconds of compiling that nobody need be told of


@contextmanager
def compiling_is_told() -> Iterator[None]:
    """Within it, one line on standard error once compiling has taken long, and one at the end."""
    waiting = _Waiting()
    before, backends.on_compile = backends.on_compile, waiting.note
    try:
        yield
    finally:
        backends.on_compile = before
        waiting.end()


class _Waiting:
    """Adds up the time spent compiling; kernels may compile others, and threads at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.active, self.begun = 0, 0.0  # compilations under way, and when the first of them began
        self.kernels, self.seconds, self.told = 0, 0.0, False
        self.timer = threading.Timer(0, self.tell)

    def note(self, name: str, done: bool) -> None:
        """A compilation begins, or is done."""
        with self.lock:
            self.active += -1 if done else 1
            self.kernels += done
            if not done and self.active == 1:
                self.begun = time.perf_counter()
                if not self.told:
                    self.timer = threading.Timer(max(_PATIENCE - self.seconds, 0), self.tell)
                    self.timer.daemon = True
                    self.timer.start()
            elif done and self.active == 0:
                self.seconds += time.perf_counter() - self.begun
                self.timer.cancel()

    def tell(self) -> None:
        """Say once that compiling is what takes so long."""
        from invocupy.backends.cpu.jit import cache_directory

        self.told = True
        place = cache_directory() or "memory only"
        text = f"invocupy: compiling CPU kernels for their first use here (kept in {place})"
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """The command is over."""
        self.timer.cancel()
        if self.told:
            kernels = "1 kernel" if self.kernels == 1 else f"{self.kernels} kernels"
            with suppress(OSError):  # the command's own error is the one to tell
                print(f"invocupy: compiled {kernels} in {self.seconds:.0f} s", file=sys.stderr)
