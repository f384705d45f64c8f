"""Optional packages: imported when needed, named when missing."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any


class MissingExtra(ModuleNotFoundError, RuntimeError):  # noqa: N818
    """An optional package is missing or too old. The message names the extra that installs it."""


def require(module: str, package: str, extra: str, minimum: str = "") -> Any:
    """Import a module of an optional package, which ``extra`` of this package installs.

    Raises MissingExtra, with the command that installs it, if it is missing, cannot be loaded, or
    is older than ``minimum`` (such as "2.10").
    """
    try:
        found = import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if absent else f"cannot be loaded ({error})"
        raise MissingExtra(f"{package} {reason}: pip install 'invocupy[{extra}]'") from error
    version = str(getattr(found, "__version__", "")) if minimum else ""
    if (numbers := _numbers(version)) and numbers < _numbers(minimum):
        raise MissingExtra(
            f"{package} {version} is too old, {minimum} or newer is needed: "
            f"pip install --upgrade 'invocupy[{extra}]'"
        )
    return found


def _numbers(version: str) -> list[int]:
    """The release of a version: "2.13.0+cpu" gives [2, 13, 0]; [] if it has no number."""
    matched = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in matched[0].split(".")] if matched else []
