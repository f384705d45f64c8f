"""A line in the log for those who wait for CPU kernels to be compiled, at their first use.

No thread and no lock, so that processes may fork at any time: the time is taken when a kernel is
done.
"""

from __future__ import annotations

from _thread import get_ident
from time import perf_counter

_PATIENCE = 1.0  # seconds of compiling that nobody need be told of
_begun: dict[int, tuple[int, float]] = {}  # by thread: kernels under way, when the first began
_spent, _told = 0.0, False


def note(name: str, done: bool) -> None:
    """A compilation begins, or is done; kernels may compile others."""
    global _spent, _told
    if _told:
        return
    me, now = get_ident(), perf_counter()
    under_way, since = _begun.pop(me, (0, now))
    under_way += -1 if done else 1
    if under_way > 0:
        _begun[me] = under_way, since
        return
    _spent += now - since
    if _spent >= _PATIENCE:
        _told = True
        _log()


def _log() -> None:
    import logging  # which takes a while itself

    from invocupy.backends.cpu.jit import cache_directory

    text = "invocupy: compiling CPU kernels, on first use only (cached in %s)"
    logging.getLogger("invocupy").warning(text, cache_directory() or "memory only")
