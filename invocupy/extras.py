"""Packages that only some commands need: imported when needed, named when missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingExtra(RuntimeError):  # noqa: N818
    """A package of an extra is not installed. Says which extra has it."""


def require(module: str, package: str, extra: str) -> Any:
    """Import a module of an optional package.

    Parameters
    ----------
    module : str
    package : str
        Its name for people.
    extra : str
        The extra of this package that brings it.

    Returns
    -------
    module

    Raises
    ------
    MissingExtra
        With the command that installs it, and the reason if it is there and cannot be loaded.

    Examples
    --------
    >>> require("no_such_module", "NoSuch", "plots")
    Traceback (most recent call last):
    ...
    invocupy.extras.MissingExtra: NoSuch is not installed: pip install 'invocupy[plots]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if absent else f"cannot be loaded ({error})"
        raise MissingExtra(f"{package} {reason}: pip install 'invocupy[{extra}]'") from error
