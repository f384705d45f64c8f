"""Pictures of a run, drawn by matplotlib, as PNG files and for the HTML page."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.atomic import write_atomically
from invocupy.extras import require
from invocupy.messages import printable
from invocupy.paths import AnyPath, expand
from invocupy.report.explorer import coloured
from invocupy.report.findings import Findings, Shots
from invocupy.train.saved import counted, measured_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = "#0072b2", "#d55e00"  # apart for all kinds of colour vision (Okabe and Ito)
INK, SOFT, LINE = "#1c1f24", "#5c6470", "#dfe3e8"  # of text, of notes, of a grid
_STYLE: Any = {
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False, "lines.markersize": 4,
    "axes.titlesize": 11, "figure.titlesize": 12, "font.size": 10, "figure.dpi": 120,
    "font.sans-serif": ["DejaVu Sans"], "axes.edgecolor": SOFT, "grid.color": LINE,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "image.composite_image": False, "image.interpolation": "none", "savefig.bbox": "tight",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "invocupy",  # the same file every time
    "text.parse_math": False,  # names may have dollars
}  # fmt: skip
_MARK = "invocupy"  # in the metadata of each picture; only files that have it are removed
_GROUPS = 8  # shown of a layer
_COLUMNS = 8  # of images
_TILE = 0.92  # side of an image in units of its place
_LONGEST = 20  # characters of a name
_CONFUSION = 20  # inches of a confusion matrix at most: memory grows with the square
_NAMED = 150  # classes of one with names and counts; for more they would be too small to read


class Picture(NamedTuple):
    """A figure with a description in words."""

    name: str  # of its file
    title: str
    alt: str  # for those who cannot see it
    figure: Figure


def draw(found: Findings, folder: AnyPath) -> list[Path]:
    """Write curves, confusion matrix, worst mistakes and kernel heat maps as PNG files.

    Parameters
    ----------
    found : Findings
        From :func:`invocupy.report.gather`.
    folder
        The folder of ``curves.png``, ``confusion.png``, ``mistakes.png`` and ``kernels-N.png`` (one
        for each image with heat maps). Pictures of an earlier call are replaced, or removed if
        there is nothing to show.

    Returns
    -------
    list of Path
        The files, in the order above, without those that have nothing to show.

    Raises
    ------
    OSError, invocupy.extras.MissingExtra
        If a file cannot be written; without matplotlib.

    Examples
    --------
    >>> draw.__name__  # see invocupy.report.gather for what it takes
    'draw'
    """
    folder, files = expand(folder), []
    with drawing():
        for name, title, _, figure in pictures(found):
            if name == "samples":
                continue
            path, content = folder / f"{name}.png", BytesIO()
            figure.suptitle(title, y=1.02, va="bottom")
            figure.savefig(content, format="png", metadata={"Software": _MARK})
            write_atomically(path, content.getvalue())
            files.append(path)
    for old in set(folder.iterdir()) - set(files):
        named = re.fullmatch(r"mistakes\.png|kernels-\d+\.png", old.name) and old.is_file()
        if named and f"Software\0{_MARK}".encode() in old.read_bytes()[:1000]:
            old.unlink()
    return files


def load_matplotlib() -> ModuleType:
    """Import matplotlib, also if MPLBACKEND names the backend of a notebook that is not installed.

    Pictures need no backend; one that exists is set as usual. Without matplotlib an
    :class:`invocupy.extras.MissingExtra` is raised.

    >>> load_matplotlib.__name__  # needs the extra plots
    'load_matplotlib'
    """
    if (loaded := sys.modules.get("matplotlib")) is not None:
        return loaded
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        matplotlib: ModuleType = require("matplotlib", "matplotlib", "plots")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in our style, not the user's, and without warnings about missing glyphs."""
    load_matplotlib()
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def pictures(found: Findings) -> Iterator[Picture]:
    """All pictures, one after another; within :func:`drawing`."""
    yield _curves(found)
    yield _confusion(found)
    if len(found.mistakes.labels):
        title = "The most certain mistakes: the model's answer, and what it is"
        yield _shots(found, found.mistakes, "mistakes", title)
    yield _shots(found, found.samples, "samples", "Samples of the test set")
    for number in range(len(found.mapped.labels) if found.maps else 0):
        yield _kernels(found, number)


def _figure(width: float, height: float) -> Figure:
    """A figure without the global state and windows of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _curves(found: Findings) -> Picture:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    history = found.history
    epochs = [row["epoch"] for row in history]
    figure = _figure(11, 3.4)
    losses, accuracies, rates = figure.subplots(1, 3)
    marker = "o" if len(epochs) <= 30 else None
    part = measured_on(history[0])
    name = {"val": "validation", "test": "test"}[part]
    for axes, what in (losses, "loss"), (accuracies, "accuracy"):
        for of, label, colour in ("train", "train", BLUE), (part, name, ORANGE):
            values = [np.nan if (v := row[f"{of}_{what}"]) is None else v for row in history]
            axes.plot(epochs, values, color=colour, marker=marker, label=label)
        axes.set_title(what)
        axes.legend(frameon=False)
    accuracies.set_ylim(0, 1)
    accuracies.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    row = counted(history) or history[-1]
    accuracy, word = row[f"{part}_accuracy"], "best" if part == "val" else "last"
    accuracies.set_title(f"accuracy: {word} {accuracy:.1%} in epoch {row['epoch']}")
    ring = {"markerfacecolor": "none", "markersize": 11, "markeredgewidth": 1.5, "color": ORANGE}
    accuracies.plot(row["epoch"], accuracy, "o", clip_on=False, **ring)
    rates.plot(epochs, [row["lr"] for row in history], color=SOFT, marker=marker)
    rates.set(title="learning rate at the epoch's end", ylim=(0, None))
    for axes in losses, accuracies, rates:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
    return Picture(
        "curves",
        f"{_short(found.name)}: {found.config.model} on {found.dataset}",
        f"Curves over {len(epochs)} epochs of loss and accuracy in training and {name}, and of the "
        f"learning rate. The {word} {name} accuracy is {accuracy:.2%}, in epoch {row['epoch']}.",
        figure,
    )


def _confusion(found: Findings) -> Picture:
    from matplotlib.colors import LinearSegmentedColormap

    counts = found.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_short(name) for name in found.classes]
    right = [f"{name}  {share:.0%}" for name, share in zip(names, shares.diagonal(), strict=True)]
    cell = min(0.5, _CONFUSION / len(names))  # in inches, as the side
    side, scale = 2.2 + cell * len(names), cell / 0.5
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    axes.grid(visible=False)
    # from transparent, so that it is right on light and dark
    blues = LinearSegmentedColormap.from_list("blues", [BLUE + "08", BLUE])
    axes.imshow(shares, cmap=blues, vmin=0, vmax=1)
    axis = "true class"
    if len(names) <= _NAMED:
        axis += ", and the share of it that is right"
        middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9 * scale}
        for i, j in np.argwhere(counts):
            colour = "white" if shares[i, j] > 0.85 else INK
            axes.text(j, i, str(counts[i, j]), color=colour, **middle)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), right)
    axes.set(xlabel="the model's answer", ylabel=axis)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10 * scale)
    return Picture(
        "confusion",
        f"{found.accuracy:.2%} of {found.images:,} test images are right",
        f"Confusion matrix, counts of answers for each true class. Right are: {'; '.join(right)}.",
        figure,
    )


def _shots(found: Findings, shots: Shots, name: str, title: str) -> Picture:
    """Images with the model's answers, those that are wrong in another colour and corrected."""
    rows = -(-len(shots.labels) // _COLUMNS)
    (figure, axes), texts = _canvas(_COLUMNS, 1.4 * rows), []
    for i, (image, label, probabilities) in enumerate(zip(*shots, strict=True)):
        x, y = i % _COLUMNS, 1.4 * (i // _COLUMNS)
        _tile(axes, x, y, coloured(image))
        answer = int(probabilities.argmax())
        text = f"{_short(found.classes[answer])} {probabilities[answer]:.0%}"
        wrong = answer != label
        axes.text(x, y + 0.97, text, va="top", color=ORANGE if wrong else INK, fontsize=9)
        if wrong:
            truth = f"is {_short(found.classes[label])}"
            axes.text(x, y + 1.13, truth, va="top", color=SOFT, fontsize=9)
        texts.append(f"{text}, {truth}" if wrong else text)
    return Picture(name, title, f"The model's answers: {'; '.join(texts)}.", figure)


def _kernels(found: Findings, number: int) -> Picture:
    """Heat maps of one image: a row for each layer, with a map for each group."""
    groups = min(max(heat.values.shape[1] for heat in found.maps), _GROUPS)
    figure, axes = _canvas(groups + 2, len(found.maps) + 0.2)
    for g in range(groups):
        axes.text(g + 1 + _TILE / 2, 0.15, f"group {g}", ha="center", va="bottom")
    for row, heat in enumerate(found.maps):
        y = row + 0.2
        values = heat.values[number][:groups]  # (G, Ho, Wo)
        low, high = np.percentile(values, (1, 99))
        _tile(axes, 0, y, coloured(found.mapped.images[number]))
        name = heat.layer.replace(".involution", "").replace(".", " ")
        axes.text(-0.06, y + _TILE / 2, name, rotation=90, ha="right", va="center")
        for g, value in enumerate(values):
            _tile(axes, g + 1, y, value, vmin=low, vmax=high)
        _tile(axes, groups + 1, y, np.linspace(1, 0, 64)[:, None], 0.08)
        for place, limit, va in (y, high, "top"), (y + _TILE, low, "bottom"):
            axes.text(groups + 1.12, place, f"{limit:.2g}", va=va, fontsize=8)
    label = _short(found.classes[found.mapped.labels[number]])
    return Picture(
        f"kernels-{number}",
        f"Kernels made over an image of {label}: the sum of each kernel's values, by group",
        f"An image of {label}, and heat maps over it of the kernels of {len(found.maps)} layers.",
        figure,
    )


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes for tiles: no frame, size in units, the origin at the top left."""
    figure = _figure(1.25 * width, 1.25 * height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _tile(
    axes: Axes, x: float, y: float, image: Array, width: float = _TILE, **colours: Any
) -> None:
    axes.imshow(image, extent=(x, x + width, y + _TILE, y), aspect="auto", **colours)


def _short(name: str) -> str:
    """A short name for a caption, without control characters and surrogates."""
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return printable(name)
