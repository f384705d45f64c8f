"""``invocupy plot`` and ``invocupy report``: a run as pictures, and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invocupy.cli.options import (
    Commands,
    add_run,
    bar,
    check_out,
    command,
    is_stdout,
    model_from,
    path,
    tell,
)

if TYPE_CHECKING:
    from invocupy.report import Findings


def add(commands: Commands) -> None:
    """Add the two commands to the parser."""
    plot = command(
        commands, "plot", _plot, help="write pictures of a run into its folder",
        description="Learning curves, confusion matrix, the most certain mistakes, and heat maps "
        "of the generated kernels, as PNG files in the run's folder. Needs matplotlib: "
        "pip install 'invocupy[plots]'.",
    )  # fmt: skip
    report = command(
        commands, "report", _report,
        help="write a report of a run as one self-contained HTML file",
        description="Settings, curves, confusion matrix, samples, heat maps of the generated "
        "kernels, machine and versions in one self-contained HTML file, which needs no network. "
        "Needs matplotlib: pip install 'invocupy[plots]'.",
    )  # fmt: skip
    report.add_argument(
        "--out", metavar="FILE", type=path, help="default report.html in the run's folder"
    )
    for parser in plot, report:
        add_run(parser)
        parser.add_argument(
            "--involutions", metavar="N", type=int, nargs="+",
            help="layers whose kernels are shown, from 0 (default up to four, evenly spaced)",
        )  # fmt: skip


def findings(run: Any, **options: Any) -> Findings:
    """The findings of a run; a missing matplotlib is an error at once, before the work."""
    from invocupy.report import gather, load_matplotlib

    load_matplotlib()
    with bar("test images") as progress:
        return gather(run, progress=progress, **options)


def _plot(arguments: argparse.Namespace) -> int:
    from invocupy.report import draw

    return _tell(arguments, draw(_findings(arguments), arguments.run))


def _report(arguments: argparse.Namespace) -> int:
    from invocupy.report import write_page

    given = arguments.out
    out = Path(arguments.run, "report.html") if given is None else check_out(given)
    write_page(_findings(arguments), out)
    return 0 if is_stdout(out) else _tell(arguments, [out])


def _findings(arguments: argparse.Namespace) -> Findings:
    return findings(
        arguments.run, which=arguments.checkpoint, involutions=arguments.involutions,
        device=arguments.device, data_dir=arguments.data_dir,
        model=model_from(arguments.model_from),
    )  # fmt: skip


def _tell(arguments: argparse.Namespace, files: list[Path]) -> int:
    paths = [str(path) for path in files]
    return tell(arguments, {"run": arguments.run, "files": paths}, *paths)
