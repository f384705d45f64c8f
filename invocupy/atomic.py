"""Atomic writing of files."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from invocupy.paths import AnyPath, expand

_PAUSES = (0.01, 0.1, 1.0, 4.0) if os.name == "nt" else ()  # seconds


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file so that it always has the complete old or the complete new content.

    The content is written to a temporary file in the same folder, synced and renamed; then the
    folder is synced if the file system supports it. A killed process may leave the temporary file
    behind, for :func:`sweep`.

    A symbolic link is kept, and its target is written. An existing file keeps its permissions and,
    if the system allows it, its owner. Pipes and devices (``/dev/stdout``) are written directly.
    After an OSError nothing has changed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "a.json"), b"{}")
    ...     [path.name for path in Path(folder).iterdir()]
    ['a.json']
    """
    path = expand(path)
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    descriptor = _descriptor(path)
    if descriptor is not None or (old is not None and not stat.S_ISREG(old.st_mode)):
        with open(path if descriptor is None else os.dup(descriptor), "wb") as file:  # noqa: PTH123
            file.write(content)
        return
    if old is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target = Path(os.path.realpath(path))
    # Cut: file systems limit the length of names.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            if old is not None:
                # Windows has no owners; some file systems refuse both
                if hasattr(os, "chown"):
                    with suppress(OSError):
                        os.chown(temporary, old.st_uid, old.st_gid)
                with suppress(OSError):
                    temporary.chmod(stat.S_IMODE(old.st_mode))
            file.write(content)
            file.flush()
            _sync(file.fileno())
        _replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # also where the disk is full, which names no file
        raise
    # The file is there; some file systems cannot sync a folder, some systems not even open one.
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            _sync(folder)
        finally:
            os.close(folder)


def _replace(temporary: Path, target: Path) -> None:
    """Rename; on Windows wait until no process has the target open."""
    for pause in _PAUSES:
        try:
            temporary.replace(target)
            return
        except PermissionError:
            time.sleep(pause)
    temporary.replace(target)


def _sync(descriptor: int) -> None:
    """Sync a file, if its file system supports it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _descriptor(path: Path) -> int | None:
    """The file descriptor of this process that a path such as ``/dev/stdout`` stands for."""
    for _ in range(40):  # links
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def sweep(folder: AnyPath, names: Iterable[str] | None = None) -> None:
    """Remove the temporary files of processes that were killed in :func:`write_atomically`.

    ``names`` are names, of up to 40 characters, of files that no process is writing now; by default
    all.
    """
    wanted = ".+" if names is None else "|".join(map(re.escape, names))
    for path in Path(folder).iterdir():
        if re.fullmatch(rf"\.({wanted})\.[0-9a-f]{{16}}\.tmp", path.name) and path.is_file():
            path.unlink(missing_ok=True)
