"""What the commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from invocupy.paths import expand

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where each command's module adds its own parser."""


def path(text: str) -> str:
    """A path on the command line with ``~`` expanded, which shells leave in ``--out=~/x``.

    Examples
    --------
    >>> path("~/run") == os.path.expanduser("~/run")
    True
    """
    if not text:
        raise argparse.ArgumentTypeError("a path cannot be empty")
    try:
        return str(expand(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error


def print_json(result: Any) -> None:
    """Print strict JSON: NaN and infinities become null."""
    from invocupy.checkpoint import strict

    print(json.dumps(strict(result), allow_nan=False))


def check_out(text: str | os.PathLike[str]) -> Path:
    """The file to write, before the work; ConfigError if there is no folder for it."""
    from invocupy.train import ConfigError

    out = Path(text)
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"out must be a file in a folder that exists, got {out}")
    return out


def is_stdout(out: Path) -> bool:
    """Whether a file is the standard output, which a line about it would spoil."""
    with suppress(OSError, ValueError):
        return os.path.samestat(out.stat(), os.fstat(sys.stdout.fileno()))
    return False


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run's folder, which of its checkpoints, and the device."""
    parser.add_argument("run", metavar="RUN", type=path, help="the run's folder")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:i")


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress function, of what is done and all; off a terminal it shows nothing."""
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, disable=None, file=sys.stderr) as shown:

        def progress(done: int, steps: int) -> None:
            shown.total = steps
            shown.update(done - shown.n)

        yield progress


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows of text as lines with aligned columns; ``align`` has ``<`` or ``>`` for each.

    Examples
    --------
    >>> print(table([("a", "1"), ("bcd", "23")], "<>"))
    a     1
    bcd  23
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in rows
    )
