"""Paths from users, with ``~`` expanded."""

from __future__ import annotations

import errno
import os
from pathlib import Path

AnyPath = str | os.PathLike[str]


def expand(path: AnyPath) -> Path:
    """The path with a leading ``~`` replaced by the home folder; ``./~x`` is a file named ``~x``.

    Raises OSError if it is empty or has a NUL character, or if there is no such user.

    Examples
    --------
    >>> expand("~/run") == Path.home() / "run"
    True
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a path must be text or a pathlib.Path, got {type(path).__name__}")
    text = os.fspath(path)
    if not text:
        raise OSError(errno.EINVAL, "a path cannot be empty: write . for this folder", text)
    if "\0" in text:
        raise OSError(errno.EINVAL, "a path cannot have a NUL character", text)
    found = os.path.expanduser(text)  # noqa: PTH111  (pathlib's takes ./~ for the home folder, too)
    if found.startswith("~"):
        reason = (
            "begins with ~, but no such user has a home folder here: give the whole path, or put "
            "./ before the name of a file"
        )
        raise OSError(errno.ENOENT, reason, text)
    plain = Path(found)
    # Path has dropped the ./ of ./~x: the next function that expands it would look for a user x.
    return plain.absolute() if str(plain).startswith("~") else plain


def existing(path: AnyPath) -> Path:
    """The expanded path of a file that is to be read.

    OSError for a pipe or a device, whose content may be endless.

    Examples
    --------
    >>> existing("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] a pipe or a device, not a file: '/dev/zero'
    """
    path = expand(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return path
