"""Pictures of a run, drawn by matplotlib: files in its folder."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from invocupy.checkpoint import write_atomically
from invocupy.extras import require
from invocupy.paths import expand
from invocupy.report.findings import Findings, Shots

BLUE, ORANGE = "#0072b2", "#d55e00"  # apart for all kinds of colour vision (Okabe and Ito)
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.dpi": 120,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
}
_MARK = "invocupy"  # in the metadata of each picture; only files that have it are removed
_GROUPS = 8  # shown of a layer


def draw(found: Findings, folder: str | os.PathLike[str]) -> list[Path]:
    """Write curves, confusion matrix, worst mistakes and kernel heat maps as PNG files.

    Parameters
    ----------
    found : Findings
    folder
        Where ``curves.png``, ``confusion.png``, ``mistakes.png`` and ``kernels-N.png`` (one for
        each image that was mapped) go. Pictures of an earlier call are replaced, or removed if
        there is nothing to show in their place.

    Returns
    -------
    list of Path
        The files, in the order above. Without mistakes or involutions their files are left out.

    Raises
    ------
    invocupy.extras.MissingExtra
        Without matplotlib.

    Examples
    --------
    >>> from invocupy.report import draw
    >>> draw.__name__  # see invocupy.report.gather for what it takes
    'draw'
    """
    folder, files = expand(folder), []
    with load_matplotlib().rc_context(_STYLE):
        pictures = {"curves": _curves(found), "confusion": _confusion(found)}
        if len(found.mistakes.labels):
            pictures["mistakes"] = _mistakes(found)
        if found.maps:
            for i in range(len(found.mapped.labels)):
                pictures[f"kernels-{i}"] = _kernels(found, i)
        for name, figure in pictures.items():
            path, content = folder / f"{name}.png", BytesIO()
            figure.savefig(content, format="png", metadata={"Software": _MARK})
            write_atomically(path, content.getvalue())
            files.append(path)
    for old in folder.iterdir():
        if old not in files and re.fullmatch(r"mistakes\.png|kernels-\d+\.png", old.name):
            _remove_own(old)
    return files


def load_matplotlib() -> Any:
    """Import matplotlib, also if MPLBACKEND names a notebook's backend that is not installed here.

    No backend is used in this module. A backend that exists is set as matplotlib itself does it.

    Returns
    -------
    module

    Raises
    ------
    invocupy.extras.MissingExtra
        Without matplotlib.

    Examples
    --------
    >>> from invocupy.report import load_matplotlib
    >>> load_matplotlib.__name__  # needs the extra plots
    'load_matplotlib'
    """
    if (loaded := sys.modules.get("matplotlib")) is not None:
        return loaded
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        matplotlib = require("matplotlib", "matplotlib", "plots")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


def _remove_own(path: Path) -> None:
    """Remove a picture of an earlier call, but no file that this module has not written."""
    if path.is_file() and f"Software\0{_MARK}".encode() in path.read_bytes()[:1000]:
        path.unlink()


def _figure(width: float, height: float) -> Any:
    """A figure without pyplot, whose global state and windows nobody needs here."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curves(found: Findings) -> Any:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    history = found.history
    epochs = [row["epoch"] for row in history]
    figure = _figure(10, 3.6)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    marker = "o" if len(epochs) <= 30 else None
    for axes, what in zip(panels, ("loss", "accuracy"), strict=False):
        for part, colour in (("train", BLUE), ("test", ORANGE)):
            values = [np.nan if (v := row[f"{part}_{what}"]) is None else v for row in history]
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, label=part)
        axes.set_title(what)
        axes.legend(frameon=False)
    panels[1].set_ylim(0, 1)
    panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    best = max(history, key=lambda row: row["test_accuracy"])
    panels[1].annotate(
        f"best {best['test_accuracy']:.1%}", (best["epoch"], best["test_accuracy"]),
        xytext=(0, -16 if best["test_accuracy"] > 0.3 else 16), textcoords="offset points",
        ha="center", va="top" if best["test_accuracy"] > 0.3 else "bottom", color=ORANGE,
        arrowprops={"arrowstyle": "-", "color": ORANGE},
    )  # fmt: skip
    panels[2].plot(epochs, [row["lr"] for row in history], color="0.3", marker=marker, markersize=4)
    panels[2].set_title("learning rate at the epoch's end")
    panels[2].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(epochs) <= 10:
            axes.set_xticks(epochs)
        axes.grid(alpha=0.25)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    figure.suptitle(f"{found.name}: {found.config.model} on {found.config.dataset}")
    return figure


def _confusion(found: Findings) -> Any:
    counts, classes = found.confusion, found.classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.52 * len(classes)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        if counts[i, j]:
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("the model's answer")
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format="{x:.0%}", pad=0.02)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    axes.set_title(f"{found.accuracy:.2%} of {found.images} test images are right")
    return figure


def _mistakes(found: Findings) -> Any:
    shots, columns = found.mistakes, 6
    rows = -(-len(shots.labels) // columns)
    figure = _figure(1.75 * columns, 2.15 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(panels.flat):
        axes.axis("off")
        if i < len(shots.labels):
            _show(axes, shots, i)
            answer = int(shots.probabilities[i].argmax())
            axes.set_title(
                f"says {found.classes[answer]} {shots.probabilities[i, answer]:.0%}\n"
                f"is {found.classes[shots.labels[i]]}",
                fontsize=9,
            )
    figure.suptitle("the most certain mistakes: the model's answer, and what it is")
    return figure


def _kernels(found: Findings, number: int) -> Any:
    groups = min(max(heat.values.shape[1] for heat in found.maps), _GROUPS)
    rows = len(found.maps)
    figure = _figure(1.5 * (groups + 1) + 1.6, 1.6 * rows + 0.9)
    panels = figure.subplots(rows, groups + 1, squeeze=False)
    for line, heat in zip(panels, found.maps, strict=True):
        values = heat.values[number]  # (G, Ho, Wo)
        low, high = np.percentile(values[:groups], (1, 99))
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        _show(line[0], found.mapped, number)
        line[0].set_ylabel(heat.layer.replace(".involution", "").replace(".", " "), fontsize=10)
        for g, axes in enumerate(line[1:]):
            if heat is found.maps[0]:
                axes.set_title(f"group {g}", fontsize=10)
            axes.set_box_aspect(1)
            if g >= len(values):
                continue
            image = axes.imshow(
                values[g], cmap="viridis", vmin=low, vmax=high, interpolation="nearest"
            )
        bar = figure.colorbar(image, ax=list(line), pad=0.01, aspect=12)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    label = found.classes[found.mapped.labels[number]]
    figure.suptitle(f"kernels made over an image ({label}): sum of each kernel's values, by group")
    return figure


def _show(axes: Any, shots: Shots, number: int) -> None:
    axes.imshow(shots.images[number].transpose(1, 2, 0), interpolation="nearest")
