"""Plays a system like Windows in a process of its own, by taking away what that lacks.

Windows itself is not here: its rules are those of its documentation.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.machinery
import os
import signal
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

GONE = {
    os: """chown fchmod fchown fork forkpty getegid geteuid getgid getloadavg getpgid getpgrp
        getresuid getsid getuid killpg lchown mkfifo mknod nice openpty posix_fadvise
        posix_fallocate pread preadv pwrite pwritev register_at_fork sched_getaffinity
        sched_setaffinity sched_yield sendfile setsid setuid statvfs sync uname wait3 wait4
        O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC""",
    signal: """SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1
        SIGUSR2 pthread_kill pthread_sigmask setitimer sigwait siginterrupt""",
}
MODULES = "fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty"
FOLDERS = "/proc", "/sys", "/dev"


def without(**gone: str) -> None:
    """Take names away: ``without(os="fork getuid", fcntl="")``; of "" the whole module."""
    for name, attributes in gone.items():
        for attribute in attributes.split():
            vars(importlib.import_module(name)).pop(attribute, None)
        if not attributes:
            sys.modules[name] = None  # type: ignore[assignment]


def like_windows() -> None:
    """Load what others wrote, which has ways of its own, then take everything away."""
    import fcntl

    for name in ("numba", "psutil", "pooch", "requests", "safetensors.numpy", "tqdm", "PIL.Image",
                 "concurrent.futures", "logging", "tempfile", "subprocess"):  # fmt: skip
        importlib.import_module(name)
    sys.modules["msvcrt"] = _msvcrt(fcntl)
    without(**{module.__name__: names for module, names in GONE.items()})
    without(**dict.fromkeys(MODULES, ""))
    ctypes.CDLL = _CDLL
    for name in ("replace", "unlink"):
        setattr(os, name, _refusing(getattr(os, name)))
    sys.addaudithook(_watch)


class _CDLL(ctypes.CDLL):
    """Windows has no handle of all that is loaded, so None is no name."""

    def __init__(self, name: Any, *options: Any, **more: Any) -> None:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *options, **more)


def _msvcrt(fcntl: Any) -> ModuleType:
    """Locks on bytes, of an open file as on Windows, not of a process."""
    module: Any = ModuleType("msvcrt")
    module.__spec__ = importlib.machinery.ModuleSpec("msvcrt", None)
    module.LK_NBLCK = 2

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert mode == module.LK_NBLCK
        here = os.lseek(descriptor, 0, os.SEEK_CUR)
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, here, count, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    module.locking = locking
    return module


def _refusing(function: Any) -> Any:
    """Windows neither removes nor replaces a file that is open."""
    listed, read = os.listdir, os.readlink

    def call(*paths: Any, **options: Any) -> Any:
        for descriptor in listed("/proc/self/fd"):
            try:
                file = read(f"/proc/self/fd/{descriptor}")
            except OSError:
                continue
            if file in {os.path.realpath(path) for path in paths}:
                raise PermissionError(13, "the file is in use", file)
        return function(*paths, **options)

    return call


def _watch(event: str, given: tuple[Any, ...]) -> None:
    """Refuse the files that Windows has not; psutil asks Windows in other ways."""
    if event != "open" or not isinstance(given[0], str | os.PathLike):
        return
    path, frame = Path(given[0]).absolute(), sys._getframe(1)
    if os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(13, "a folder cannot be opened", str(path))
    if set(path.name) & set('<>:"|?*'):
        raise OSError(22, "Windows takes no such name", str(path))
    while frame.f_back and "psutil" not in frame.f_globals.get("__name__", ""):
        frame = frame.f_back
    if f"/{path.parts[1]}" in FOLDERS and str(path) != os.devnull and not frame.f_back:
        raise FileNotFoundError(2, "there is no such folder on Windows", str(path))


def bits() -> str:
    """A digest of an involution and its gradients, computed by the pool."""
    import numpy as np

    import invocupy

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, 8, 40, 41)), rng.normal(size=(4, 2, 3, 3, 40, 41))
    operands = [invocupy.Tensor(array, requires_grad=True) for array in (x, kernel)]
    out = invocupy.involution(*operands)
    (out * out).sum().backward()
    arrays = out.data, *(operand.grad for operand in operands)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
