"""Paths as users mean them: ``~`` is the home folder, wherever the path comes from."""

from __future__ import annotations

import errno
import os
from pathlib import Path

AnyPath = str | os.PathLike[str]


def expand(path: AnyPath) -> Path:
    """A path in which a leading ``~`` is the home folder; no shell may have seen it.

    Parameters
    ----------
    path

    Returns
    -------
    Path

    Raises
    ------
    OSError
        If it is empty or has a NUL character, or begins with ``~`` and there is no such user.

    Examples
    --------
    >>> expand("~/run") == Path.home() / "run"
    True
    """
    text = os.fspath(path)
    if not text:
        raise OSError(errno.EINVAL, "a path cannot be empty: write . for this folder", text)
    if "\0" in text:
        raise OSError(errno.EINVAL, "a path cannot have a NUL character", text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        reason = "begins with ~, but no such user has a home folder here: give the whole path"
        raise OSError(errno.ENOENT, reason, text) from error


def existing(path: AnyPath) -> Path:
    """The path of a file that is to be read, expanded (:func:`expand`).

    Parameters
    ----------
    path

    Returns
    -------
    Path

    Raises
    ------
    OSError
        If it is a pipe or a device, which may never end.

    Examples
    --------
    >>> existing("/dev/zero")
    Traceback (most recent call last):
    ...
    OSError: [Errno 22] a pipe or a device, not a file: '/dev/zero'
    """
    path = expand(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return path
