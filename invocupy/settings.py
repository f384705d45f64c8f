"""Settings from environment variables."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from invocupy.paths import expand

# The meaning of each environment variable, and its default.
VARIABLES = {
    "INVOCUPY_DATA": ("folder of downloaded data", "the cache folder"),
    "INVOCUPY_CACHE_DIR": (
        "folder of compiled CPU kernels; empty: do not store them", "the cache folder",
    ),
    "INVOCUPY_NUM_THREADS": ("number of threads, an integer >= 1", "the idle cores"),
    "INVOCUPY_CHECKED": ("1: CPU kernels check each address against the arrays of the call", "0"),
    "INVOCUPY_CUDA_SYNC": ("1: wait for each CUDA kernel, to find one that fails", "0"),
}  # fmt: skip


class SettingError(ValueError):
    """An environment variable has an invalid value. The message names the variable and the rule."""


def flag(name: str) -> bool:
    """Whether a variable is ``1``."""
    return os.environ.get(name) == "1"


def folder(name: str) -> Path | None:
    """The folder that a variable names: absolute, with ``~`` expanded; None if unset or empty."""
    given = os.environ.get(name)
    if not given:
        return None
    try:
        return expand(given).absolute()
    except OSError as error:
        raise SettingError(f"{name}={given!r} {error.strerror}") from None


def cache_root() -> Path:
    """The folder ``invocupy`` in the user's caches.

    These are ``$XDG_CACHE_HOME`` if it is absolute (its specification says to ignore relative
    values), on Windows ``%LOCALAPPDATA%``, on macOS ~/Library/Caches, elsewhere ~/.cache.
    """
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        given = Path(os.environ.get(name, ""))
        if given.is_absolute():
            return given / "invocupy"
    try:
        caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
        return (Path.home() / caches / "invocupy").absolute()
    except RuntimeError:
        raise SettingError("the home folder is not known; set HOME or XDG_CACHE_HOME") from None


def number_of_threads() -> int | None:
    """``INVOCUPY_NUM_THREADS``; None if it is unset or empty."""
    given = os.environ.get("INVOCUPY_NUM_THREADS", "")
    if not given.strip():
        return None
    if not re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", given, re.ASCII):
        raise SettingError(
            "INVOCUPY_NUM_THREADS must be an integer >= 1, or empty for all idle cores, "
            f"got {given!r}"
        )
    return int(given)
