"""One HTML file about a run, which needs no network and no other file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from invocupy import checkpoint
from invocupy._version import __version__
from invocupy.report.findings import Findings, HeatMap, Shots
from invocupy.report.png import colours, data_uri, legend
from invocupy.report.style import STYLE
from invocupy.report.svg import chart

_GROUPS = 8  # shown of a layer


def write_page(found: Findings, path: str | os.PathLike[str]) -> None:
    """Write the page of a run; an older file of that name is replaced at once.

    Parameters
    ----------
    found : Findings
        From :func:`invocupy.report.gather`.
    path

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from invocupy.report import write_page
    >>> write_page.__name__  # see invocupy.report.gather for what it takes
    'write_page'
    """
    checkpoint.write_atomically(path, render(found).encode(errors="replace"))


def render(found: Findings) -> str:
    """The page as text."""
    config = found.config
    title = f"{found.name}: {config.model} on {config.dataset}"
    sections = [
        _section("Learning", _curves(found)),
        _section(
            "Confusion",
            f"<p>{found.accuracy:.2%} of {found.images:,} test images are right. Rows: the true "
            "class; columns: the model's answer.</p>" + _confusion(found),
        ),
        _section("The most certain mistakes", _shots(found, found.mistakes))
        if len(found.mistakes.labels)
        else "",
        _section("Samples of the test set", _shots(found, found.samples)),
        _section("Generated kernels", _maps(found)) if found.maps else "",
        _section("Settings", _table(asdict(config).items())),
        _section("Machine and versions", _machine(found.machine)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><p>invocupy, training report</p><h1>{escape(found.name)}</h1>{_head(found)}"
        f"</header>{''.join(sections)}<footer>Written by invocupy {__version__}.</footer>"
        "</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _head(found: Findings) -> str:
    history, config = found.history, found.config
    best = max(history, key=lambda row: row["test_accuracy"])
    seconds = sum(row["seconds"] for row in history)
    images = sum(row["seconds"] * row["images_per_second"] for row in history)
    length = f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
    layers = f", {config.layers} layers" if config.model == "simple" else ""
    facts = [
        (f"{best['test_accuracy']:.2%}", f"best test accuracy, epoch {best['epoch']}"),
        (f"{len(history)} of {config.epochs}", "epochs"),
        (length, "of training"),
        (f"{images / max(seconds, 1e-9):,.0f}", "images a second"),
        (config.model + layers, f"on {config.dataset}"),
    ]
    items = (f"<li><b>{escape(big)}</b><span>{escape(small)}</span></li>" for big, small in facts)
    return f'<ul class="facts">{"".join(items)}</ul>'


def _curves(found: Findings) -> str:
    rows = found.history
    epochs = [row["epoch"] for row in rows]

    def lines(what: str) -> list[tuple[str, list[float | None]]]:
        return [(part, [row[f"{part}_{what}"] for row in rows]) for part in ("train", "test")]

    charts = [
        ("loss", chart("loss", epochs, lines("loss"))),
        (
            "accuracy",
            chart("accuracy", epochs, lines("accuracy"), (0.0, 1.0), lambda y: f"{y:.0%}"),
        ),
        (
            "learning rate at the epoch's end",
            chart("learning rate", epochs, [("rate", [row["lr"] for row in rows])]),
        ),
    ]
    key = '<i class="train"></i>training <i class="test"></i>test'
    return '<div class="charts">' + "".join(
        f"<figure><figcaption>{escape(name)}"
        f"<span class=key>{key if 'rate' not in name else ''}</span></figcaption>{drawing}</figure>"
        for name, drawing in charts
    ) + "</div>"  # fmt: skip


def _confusion(found: Findings) -> str:
    counts = found.confusion
    head = "".join(f"<th scope=col><span>{escape(name)}</span></th>" for name in found.classes)
    body = []
    for i, name in enumerate(found.classes):
        total = max(int(counts[i].sum()), 1)
        cells = "".join(
            f'<td class="{"deep" if n > 0.62 * total else ""}" style="--s:{100 * n / total:.0f}%">'
            f"{n or ''}</td>"
            for n in counts[i].tolist()
        )
        share = f"{counts[i, i] / total:.0%}" if counts[i].sum() else "-"
        body.append(
            f"<tr><th scope=row>{escape(name)}</th>{cells}<td class=share>{share}</td></tr>"
        )
    return (
        '<div class="wide"><table class="confusion"><thead><tr><td></td>'
        f"{head}<th scope=col><span>right</span></th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _shots(found: Findings, shots: Shots) -> str:
    figures = []
    for image, label, probabilities in zip(*shots, strict=True):
        answer = int(probabilities.argmax())
        name, truth = escape(found.classes[answer]), escape(found.classes[label])
        mark = "right" if answer == label else "wrong"
        note = "" if answer == label else f"<span>is {truth}</span>"
        figures.append(
            f'<figure class="{mark}">{_img(image.transpose(1, 2, 0), truth)}<figcaption><b>{name}'
            f"</b> {probabilities[answer]:.0%}{note}</figcaption></figure>"
        )
    return f'<div class="shots">{"".join(figures)}</div>'


def _maps(found: Findings) -> str:
    parts = [
        "<p>At each pixel a kernel is made from the input, one for each group of channels. Shown "
        "is the sum of each kernel's values, as in the involution paper; the colours of a row run "
        "from its lowest to its highest sum "
        f'<i class="scale" style="background:{legend()}"></i>, and its columns are the groups.</p>'
        '<div class="many">'
    ]
    for number, label in enumerate(found.mapped.labels):
        rows = "".join(_map_row(heat, number) for heat in found.maps)
        original = _img(found.mapped.images[number].transpose(1, 2, 0), found.classes[label])
        parts.append(
            f'<div class="wide"><table class="maps"><tbody><tr><th>{escape(found.classes[label])}'
            f"</th><td>{original}</td></tr>{rows}</tbody></table></div>"
        )
    return "".join(parts) + "</div>"


def _map_row(heat: HeatMap, number: int) -> str:
    values = heat.values[number][:_GROUPS]
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    cells = "".join(
        f"<td>{_img(colours(group, low, high), f'group {g}')}</td>"
        for g, group in enumerate(values)
    )
    name = escape(heat.layer.replace(".involution", "").replace(".", " "))
    return f"<tr><th scope=row>{name}<span>{low:.2g} to {high:.2g}</span></th>{cells}</tr>"


def _img(pixels: Any, text: str) -> str:
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<img {size} alt="{escape(text)}" src="{data_uri(pixels)}">'


def _machine(about: dict[str, Any]) -> str:
    if not about:
        return "<p>Not noted: the run is from before version 0.1 kept it.</p>"
    packages = {f"{name}": number for name, number in about["packages"].items() if number}
    rows = {
        "invocupy": about["invocupy"], "Python": about["python"], **about["devices"],
        "threads": about["threads"], **packages,
    }  # fmt: skip
    return _table(rows.items())


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    def text(value: Any) -> str:
        if value is None:
            return "none"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    lines = (
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(text(value))}</td></tr>"
        for name, value in rows
    )
    return f'<div class="wide"><table class="list"><tbody>{"".join(lines)}</tbody></table></div>'
