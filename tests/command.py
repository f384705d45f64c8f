"""The command line, in this process and in one of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import Any

import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

from invocupy.cli import main

# no involution: nothing to compile; device: so that a GPU changes nothing
TINY = [
    "--layers",
    "0",
    "--limit",
    "40",
    "--batch-size",
    "20",
    "--epochs",
    "2",
    "--device",
    "cpu",
    "--no-plots",
]
TRAIN = ["train", *TINY]


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The program in a process of its own, in which Ctrl-C works."""
    return subprocess.Popen(
        [sys.executable, "-m", "invocupy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a parent in the background may have switched it off
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run, expect the exit code and one line on standard error; the line."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"invocupy: [^\n]+\n", err), err
    return err
