"""What the commands share: parsers, flags, progress, and how a result is printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from invocupy.messages import did_you_mean, one_line, printable
from invocupy.paths import expand


class Parser(argparse.ArgumentParser):
    """A parser that suggests corrections, and adds slow-loading flags only when it is used."""

    def __init__(
        self, *given: Any, late: Callable[[Parser], None] | None = None, **options: Any
    ) -> None:
        super().__init__(*given, **options)
        self._late = late

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class, but unknown arguments are an error."""
        late, self._late = self._late, None
        if late is not None:
            late(self)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            near = did_you_mean(rest[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(rest)}{near}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def _print_message(self, message: str, file: Any = None) -> None:
        """``argparse`` ignores write errors; here they are errors like others."""
        if message and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""Where each command's module adds its own parser."""


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], **options: Any
) -> Parser:
    """Add the parser of a command, with ``--json``; ``options`` are those of the parser."""
    parser = commands.add_parser(name, **options)
    parser.set_defaults(command=run)
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")
    return parser


def path(text: str) -> str:
    """A path on the command line with ``~`` expanded, which shells leave in ``--out=~/x``."""
    if not text:
        raise argparse.ArgumentTypeError("a path cannot be empty")
    try:
        return str(expand(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error


def add_run(parser: Parser, data: bool = True) -> None:
    """Add the run's folder, its checkpoint, the device, and the data folder."""
    parser.add_argument("run", metavar="RUN", type=path, help="the run's folder")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best",
        help="best: the epoch with the highest validation accuracy (without validation, the last "
        "epoch); last: where training stopped (default %(default)s)",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--model-from", metavar="MODULE:FUNCTION",
        help="a function without arguments that creates the model; needed if fit was given one",
    )  # fmt: skip
    if data:
        parser.add_argument(
            "--data-dir", metavar="DIR", type=path, help="where the image files are, if they moved"
        )


def model_from(given: str | None) -> Any:
    """The model that ``MODULE:FUNCTION`` creates; None if none is given."""
    from invocupy.train import ConfigError
    from invocupy.train.evaluation import check_model

    if given is None:
        return None
    module, _, name = given.partition(":")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  (as python -m does, and import compares texts)
    try:
        with redirect_stdout(sys.stderr):  # what they print is no result
            model = getattr(import_module(module), name)()
        check_model(model)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"model-from must be MODULE:FUNCTION, a function that creates the model, got {given} "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    finally:
        sys.path.remove(os.getcwd())  # noqa: PTH109
    return model


def add_device(parser: Parser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", metavar="NAME", default="auto",
        help="auto, cpu, cuda or cuda:i (default %(default)s)",
    )  # fmt: skip


def check_out(text: str) -> Path:
    """The file to write, checked before any work; ConfigError if its folder does not exist."""
    from invocupy.train import ConfigError

    out = Path(text)
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"out must be a file in a folder that exists, got {out}")
    return out


def is_stdout(out: Path) -> bool:
    """Whether a file is standard output, where an additional line would corrupt it."""
    with suppress(OSError, ValueError):
        return os.path.samestat(out.stat(), os.fstat(sys.stdout.fileno()))
    return False


def tell(arguments: argparse.Namespace, result: Any, *lines: str, code: int = 0) -> int:
    """Print a result, as strict JSON (NaN and infinities are null) or as lines; return ``code``."""
    from invocupy.checkpoint import strict

    if arguments.json:
        lines = (json.dumps(strict(result), allow_nan=False),)
    if lines:
        print("\n".join(lines))
    return code


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function ``progress(done, total)``, whose bar appears on terminals only."""
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, disable=None, file=sys.stderr) as shown:

        def progress(done: int, steps: int) -> None:
            shown.total = steps
            shown.update(done - shown.n)

        yield progress


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows of text as lines with aligned columns; ``align`` has ``<`` or ``>`` for each column.

    Names of classes and files may hold anything: what a terminal would obey is not printed.

    >>> print(table([("a", "1"), ("bcd", "23")], "<>"))
    a     1
    bcd  23
    """
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return "\n".join(line.format(*row).rstrip() for row in rows)
