"""The command line ``invocupy COMMAND``: one module for each command.

Each module has ``add(commands)``, which adds its parser and names the function that runs it.
Progress goes to standard error, results to standard output. Modules that are slow to load are
imported inside the commands, so that ``invocupy --help`` is fast.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from invocupy._version import __version__
from invocupy.cli import bench, evaluate, explore, import_, info, look, predict, summary, train
from invocupy.cli.notice import compiling_is_told
from invocupy.cli.options import Parser
from invocupy.distributed import PeerError, abort_all, is_root
from invocupy.messages import printable

_CODES = {  # of errors with a plain cause, by the names of their classes, which load with commands
    "ConfigError": 2, "LaunchError": 2, "SettingError": 2,
    "CheckpointError": 65, "DataError": 65, "WeightsError": 65,
    "DownloadError": 69, "MissingExtra": 69,
    "NonFiniteLoss": 70,
    "MemoryError": 1, "OSError": 1, "PeerError": 1,
    "BrokenPipeError": 128 + getattr(signal, "SIGPIPE", 13),
}  # fmt: skip
_EPILOG = """Results go to standard output, progress to standard error. Exit codes: 0 success, 1
system error or unexpected error, 2 wrong usage or settings, 65 invalid data, image or checkpoint,
69 a download failed or a package is missing, 70 the loss became NaN or infinite, 75 another rank
timed out or the launcher died, 129 ended by SIGHUP, 130 by Ctrl-C, 141 the reader of the output
closed it, 143 ended by SIGTERM."""


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
            with compiling_is_told(is_root()):
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
    if isinstance(error, KeyboardInterrupt):
        code = 128 + int(getattr(error, "signal", signal.SIGINT))
    else:
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _CODES]
        if not names:
            raise error
        code = _CODES[names[0]]
    text = " ".join(str(error).splitlines()) or "interrupted"
    if isinstance(error, OSError) and error.filename:  # not all errors of the system name a file
        text = f"{error.filename}: {error.strerror}"
    text = printable(f"invocupy: {text}")
    # The reader (head, a pager) has closed the pipe: exit silently, as programs in C do.
    text = "" if isinstance(error, BrokenPipeError) else text
    # Interrupted, which has a signal, is raised on all ranks; other errors may be on one only.
    if not hasattr(error, "signal"):
        abort_all(text, code, isinstance(error, PeerError))
    elif is_root():
        with suppress(OSError):
            print(text, file=sys.stderr)
    return code


def _ready_streams() -> None:
    """Replace closed streams by the null device; escape characters that an encoding lacks."""
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


def _parser() -> Parser:
    parser = Parser(
        "invocupy", description="Involution without a deep learning framework.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"invocupy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (train, summary, evaluate, predict, look, explore, import_, bench, info):
        module.add(commands)
    return parser
