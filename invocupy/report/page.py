"""Self-contained HTML files about a run, which need no network."""

from __future__ import annotations

import re
from dataclasses import asdict
from html import escape
from importlib.resources import files
from io import StringIO
from string import Template
from typing import Any

from invocupy._version import __version__
from invocupy.atomic import write_atomically
from invocupy.paths import AnyPath
from invocupy.report.explorer import Explored, fragment
from invocupy.report.figures import BLUE, INK, LINE, ORANGE, SOFT, Picture, drawing, pictures
from invocupy.report.findings import Findings
from invocupy.train.saved import counted

_EXPLORER = "The kernel at each pixel"
# The style of the page has another colour for each of them in light and in dark.
_COLOURS = {BLUE: "blue", INK: "ink", LINE: "line", ORANGE: "orange", SOFT: "soft"}


def write_page(found: Findings, path: AnyPath) -> None:
    """Write the page of a run.

    Parameters
    ----------
    found : Findings
        From :func:`invocupy.report.gather`.
    path
        The HTML file; an existing one is replaced.

    Raises
    ------
    OSError, invocupy.extras.MissingExtra
        If the file cannot be written; without matplotlib.

    Examples
    --------
    >>> write_page.__name__  # see invocupy.report.gather for what it takes
    'write_page'
    """
    write_atomically(path, render(found).encode(errors="replace"))


def render(found: Findings) -> str:
    """The page as text."""
    with drawing():
        sections = [_section(picture.title, _svg(picture)) for picture in pictures(found)]
    if found.explored is not None:
        sections.append(_section(_EXPLORER, fragment(found.explored)))
    sections += [
        _section("Settings", _table(asdict(found.config))),
        _section("Machine and versions", _machine(found.machine)),
    ]
    title = f"{found.name}: {found.config.model} on {found.dataset}"
    return _page(title, "training report", found.name, _facts(found), sections)


def write_explorer(explored: Explored, name: str, path: AnyPath) -> None:
    """Write a page that shows the kernels at each pixel.

    Parameters
    ----------
    explored
        From :func:`invocupy.report.explore`.
    name
        Of the run, for the page's title.
    path
        The HTML file; an existing one is replaced.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> write_explorer.__name__  # see invocupy.report.explore for what it takes
    'write_explorer'
    """
    write_atomically(path, explorer_page(explored, name).encode(errors="replace"))


def explorer_page(explored: Explored, name: str) -> str:
    """The page of :func:`write_explorer` as text."""
    kind = f"explorer of {name}"
    return _page(f"{name}: {_EXPLORER}", kind, _EXPLORER, "", [fragment(explored)])


def _page(title: str, kind: str, name: str, facts: str, sections: list[str]) -> str:
    page = files("invocupy.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(page).substitute(
        title=escape(title), kind=escape(kind), name=escape(name), facts=facts,
        sections="".join(sections), version=__version__,
    )  # fmt: skip


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><div>{content}</div></section>\n"


def _svg(picture: Picture) -> str:
    """A picture as part of an HTML document: named, without references, in the page's colours."""
    figure, text = picture.figure, StringIO()
    for artist in figure.findobj():
        artist.set_clip_on(False)  # nothing sticks out, and clipping makes references by url()
    unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=unnamed)
    head, _, body = text.getvalue().partition("<svg")[2].partition(">")
    size = " ".join(re.findall(r'(?:width|height|viewBox)="[^"]*"', head))
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    for colour, name in _COLOURS.items():
        body = body.replace(f": {colour}", f": var(--{name})")
    return f'<svg role="img" aria-label="{escape(picture.alt)}" {size}>{body}'


def _facts(found: Findings) -> str:
    history, config = found.history, found.config
    best = counted(history) or history[-1]
    validation = {}
    if "val_accuracy" in best:
        validation = {
            f"best validation accuracy, epoch {best['epoch']}": f"{best['val_accuracy']:.2%}"
        }
    seconds = sum(row["seconds"] for row in history)
    images = sum(row["seconds"] * row["images_per_second"] for row in history)
    layers = f", {config.layers} layers" if config.model == "simple" else ""
    facts = {
        f"test accuracy, epoch {found.epoch}": f"{found.accuracy:.2%}",
        **validation,
        "epochs": f"{len(history)} of {config.epochs}",
        "of training": f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s",
        "images per second": f"{images / max(seconds, 1e-9):,.0f}",
        f"on {found.dataset}": config.model + layers,
    }
    items = (
        f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>"
        for name, value in facts.items()
    )
    return f'<ul class="facts">{"".join(items)}</ul>'


def _machine(about: dict[str, Any]) -> str:
    if not about:
        return "<p>Not noted: the run is from before version 0.1 kept it.</p>"
    return _table(
        {"invocupy": about["invocupy"], "Python": about["python"], **about["devices"]}
        | {"threads": about["threads"]}
        | {name: number for name, number in about["packages"].items() if number}
    )


def _table(rows: dict[str, Any]) -> str:
    return "<table>" + "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_text(value))}</td></tr>'
        for name, value in rows.items()
    ) + "</table>"  # fmt: skip


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
