"""What the commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where each command's module adds its own parser."""


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", default=False, help="for programs to read")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run's folder, which of its checkpoints, and the device."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
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
