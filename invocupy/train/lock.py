"""The lock of a run folder, which has one writer; the system releases it with the process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from invocupy.train.config import ConfigError

fcntl, msvcrt = (import_module(m) if find_spec(m) else None for m in ("fcntl", "msvcrt"))

NAME = ".invocupy.lock"
_BYTE = 1 << 30  # which Windows locks: others cannot read what is locked
_held: set[int] = set()  # descriptors


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context that holds the lock of a folder; ConfigError if it is taken.

    The lock is ``flock`` on the file ``.invocupy.lock``, which names the process that holds it and
    is removed at the end; on Windows it is a locked byte of that file. A killed process leaves the
    file, but not the lock. File systems without locks have none.
    """
    path = folder / NAME
    descriptor = _take(path) if fcntl or msvcrt else None
    if descriptor is None:
        yield
        return
    _held.add(descriptor)
    owner = os.getpid()
    try:
        who = {"pid": owner, "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(who).encode())
        yield
    finally:
        if descriptor in _held and os.getpid() == owner:
            _held.discard(descriptor)
            with suppress(OSError):
                path.unlink()  # while it is locked: who opens it later makes another one
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for children that have it open
            os.close(descriptor)
            if not fcntl:
                with suppress(OSError):
                    path.unlink()  # which Windows refuses while anybody has it open


def _take(path: Path) -> int | None:
    """A descriptor of the locked file; None where there are no locks."""
    # Not through a link: the file is written and removed.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            _lock(descriptor)
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


def _lock(descriptor: int) -> None:
    """Lock an open file; BlockingIOError if it is locked, another OSError without locks."""
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(descriptor, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[union-attr]
    except PermissionError as error:
        raise BlockingIOError from error


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        who = json.loads(os.read(descriptor, 1000))
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
