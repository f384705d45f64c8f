"""Settings from environment variables: folders and the number of threads."""

from __future__ import annotations

import os
import re
from pathlib import Path

from invocupy.paths import expand


class SettingError(ValueError):
    """An environment variable has an invalid value. The message names the variable and the rule."""


def folder(name: str) -> Path | None:
    """The folder that a variable names: absolute, with ``~`` expanded; None if unset or empty.

    Raises
    ------
    SettingError
        If the home folder that ``~`` stands for is not known.

    Examples
    --------
    >>> import os
    >>> os.environ["INVOCUPY_EXAMPLE"] = "~/kernels"
    >>> folder("INVOCUPY_EXAMPLE") == Path.home() / "kernels"
    True
    >>> del os.environ["INVOCUPY_EXAMPLE"]
    """
    given = os.environ.get(name)
    if not given:
        return None
    try:
        return expand(given).absolute()
    except OSError as error:
        raise SettingError(f"{name}={given!r} {error.strerror}") from None


def cache_root() -> Path:
    """The folder ``invocupy`` in the user's caches, for files that can be made or loaded again.

    The caches are in ``$XDG_CACHE_HOME``, or in ``~/.cache`` if that is unset or relative: the XDG
    Base Directory Specification says to ignore relative values.

    Raises
    ------
    SettingError
        If it is not set and the home folder is not known.

    Examples
    --------
    >>> cache_root().name
    'invocupy'
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "invocupy"
    try:
        return (Path.home() / ".cache" / "invocupy").absolute()
    except RuntimeError:
        raise SettingError("the home folder is not known; set HOME or XDG_CACHE_HOME") from None


def number_of_threads() -> int | None:
    """``INVOCUPY_NUM_THREADS``; None if it is unset or empty.

    Raises
    ------
    SettingError
        If it is not an integer >= 1.

    Examples
    --------
    >>> import os
    >>> os.environ["INVOCUPY_NUM_THREADS"] = "two"
    >>> number_of_threads()
    Traceback (most recent call last):
    ...
    invocupy.settings.SettingError: INVOCUPY_NUM_THREADS must be an integer >= 1, or empty for as
    many as there are free cores, got 'two'
    >>> del os.environ["INVOCUPY_NUM_THREADS"]
    """
    given = os.environ.get("INVOCUPY_NUM_THREADS", "")
    if not given.strip():
        return None
    if not re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", given, re.ASCII):
        raise SettingError(
            "INVOCUPY_NUM_THREADS must be an integer >= 1, or empty for as many as there are free "
            f"cores, got {given!r}"
        )
    return int(given)
