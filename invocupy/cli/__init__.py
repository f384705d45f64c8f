"""The command line: ``invocupy COMMAND``, a module a command.

Each module has ``add(commands)``, which adds its parser and names the function that runs it.
Progress goes to standard error, results to standard output. What takes time to load is imported
inside the commands, so that ``invocupy --help`` answers at once.

Exit codes: 0 done, 1 refused by the system or unexpected, 2 wrong usage, 65 bad data, image or
checkpoint, 69 a download failed or a package is missing, 70 the loss became NaN or infinite, 75
another rank timed out or the launcher died, 130 interrupted by Ctrl-C, 143 ended by SIGTERM (129 by
SIGHUP), 141 the program that reads the output closed it.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from invocupy._version import __version__
from invocupy.cli import bench, evaluate, import_, info, look, predict, summary, train
from invocupy.cli.notice import compiling_is_told
from invocupy.distributed import is_root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; the program ``invocupy``.

    Parameters
    ----------
    argv
        The arguments; by default those of the process.

    Examples
    --------
    >>> from invocupy.cli import main
    >>> main(["evaluate", "no/such/run"])
    65
    """
    _ready_streams()
    try:
        try:
            arguments = _parser().parse_args(argv)
            with compiling_is_told() if is_root() else nullcontext():
                code: int = arguments.command(arguments)
        finally:
            sys.stdout.flush()  # also of --help: what fails at exit has no message
    except (Exception, KeyboardInterrupt) as error:
        code = _told(error)
    finally:
        _settle_streams()
    return code


def _told(error: BaseException) -> int:
    """The exit code of an error that has a plain cause, after its line is written."""
    known = _exit_code(error)
    if known is None:
        raise error
    from invocupy.distributed import PeerError, abort_all
    from invocupy.train import Interrupted

    text = f"invocupy: {' '.join(str(error).splitlines()) or 'interrupted'}"
    # The reader (head, a pager) has closed the pipe: end in silence, as programs in C do.
    text = "" if isinstance(error, BrokenPipeError) else text
    # Interrupted is raised on all ranks together; any other error may be on one rank only.
    if not isinstance(error, Interrupted):
        abort_all(text, known, isinstance(error, PeerError))
    elif is_root():
        with suppress(OSError):
            print(text, file=sys.stderr)
    return known


def _ready_streams() -> None:
    """Replace closed streams by the null device; escape letters that an encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (
        out.errors == "strict" or out.encoding.lower() not in ("utf-8", "utf8")
    ):
        out.reconfigure(errors="backslashreplace")


def _settle_streams() -> None:
    """Drop output that cannot be written: at exit Python would try again and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _exit_code(error: BaseException) -> int | None:
    """The code for errors that have a plain cause; None for those that deserve a traceback."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + int(getattr(error, "signal", signal.SIGINT))
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    from invocupy.checkpoint import CheckpointError
    from invocupy.data import DataError, DownloadError
    from invocupy.distributed import LaunchError, PeerError
    from invocupy.extras import MissingExtra
    from invocupy.settings import SettingError
    from invocupy.train import ConfigError, NonFiniteLoss
    from invocupy.weights import WeightsError

    codes: dict[type[Exception], int] = {
        ConfigError: 2,
        LaunchError: 2,
        SettingError: 2,
        DataError: 65,
        CheckpointError: 65,
        WeightsError: 65,
        DownloadError: 69,
        MissingExtra: 69,
        NonFiniteLoss: 70,
        OSError: 1,
        PeerError: 1,
        MemoryError: 1,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


class _Parser(argparse.ArgumentParser):
    """``argparse`` drops what it cannot write; help on a full disk is an error like any other."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "invocupy",
        description="Involution without a deep learning framework.",
        epilog="Results go to standard output, progress to standard error. Exit codes: 0 done, 1 "
        "refused by the system or unexpected, 2 wrong usage or settings, 65 bad data, image or "
        "checkpoint, 69 a download failed or a package is missing, 70 the loss became NaN or "
        "infinite, 75 another rank timed out or the launcher died, 130 interrupted by Ctrl-C, 143 "
        "ended by SIGTERM, 129 by SIGHUP, 141 the program that reads the output closed it.",
    )
    parser.add_argument("--version", action="version", version=f"invocupy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (train, summary, evaluate, predict, look, import_, bench, info):
        module.add(commands)
    return parser
