"""The lock of a run's folder, which has one writer: it ends with its process in any case."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from invocupy.train.config import ConfigError

try:
    import fcntl
except ImportError:  # not POSIX: no lock
    fcntl = None  # type: ignore[assignment]

NAME = ".invocupy.lock"
_held: set[int] = set()  # descriptors


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context that holds the lock of a folder; ConfigError if another process or call has it.

    The lock is ``flock`` on the file ``.invocupy.lock``, which names the process that holds it and
    is removed at the end. A killed process leaves the file, but not the lock. Systems and file
    systems without ``flock`` have no lock.
    """
    path = folder / NAME
    descriptor = _take(path) if fcntl is not None else None
    if descriptor is None:
        yield
        return
    _held.add(descriptor)
    owner = os.getpid()
    try:
        who = {"pid": owner, "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)
        yield
    finally:
        if descriptor in _held and os.getpid() == owner:
            _held.discard(descriptor)
            with suppress(OSError):
                path.unlink()  # while it is locked: who opens it later makes another one
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for children that still have it open
            os.close(descriptor)


def _take(path: Path) -> int | None:
    """A descriptor of the locked file; None where there are no locks."""
    # Not through a link: the file is written and removed.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError:
            who = _holder(descriptor)
            os.close(descriptor)
            raise ConfigError(
                f"{path.parent} is in use by {who}, which trains there: wait for its end or stop "
                "it, then resume the run; or give another folder"
            ) from None
        except OSError:  # no locks here
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        os.close(descriptor)  # its holder has ended and removed it in between


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, TypeError, KeyError):
        return "another process"


def _forget() -> None:
    """A child of fork must not keep the lock when its parent has ended."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
