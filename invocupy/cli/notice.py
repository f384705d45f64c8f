"""Messages while CPU kernels are compiled, at their first use on a machine."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from invocupy import backends

_PATIENCE = 1.0  # seconds of compiling before a message


@contextmanager
def compiling_is_told(here: bool = True) -> Iterator[None]:
    """Within it, slow compilation is announced on standard error, and summed up at the end.

    Not ``here``: none, also not the line in the log that others get.
    """
    waiting = _Waiting()
    before, backends.on_compile = backends.on_compile, waiting.note if here else None
    try:
        yield
    finally:
        backends.on_compile = before
        waiting.end()


class _Waiting:
    """Sums the compile time; kernels may compile others, and threads in parallel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.active, self.begun = 0, 0.0  # compilations under way, and when the first of them began
        self.kernels, self.seconds, self.told = 0, 0.0, False
        self.timer = threading.Timer(0, self.tell)

    def note(self, name: str, done: bool) -> None:
        """A compilation begins, or ends."""
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
        """Print the announcement, once."""
        from invocupy.backends.cpu.jit import cache_directory

        self.told = True
        place = cache_directory() or "memory only"
        text = f"invocupy: compiling CPU kernels, on first use only (cached in {place})"
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """The command is over."""
        self.timer.cancel()
        if self.told:
            kernels = "1 kernel" if self.kernels == 1 else f"{self.kernels} kernels"
            with suppress(OSError):  # the command's own error matters more
                print(f"invocupy: compiled {kernels} in {self.seconds:.0f} s", file=sys.stderr)
