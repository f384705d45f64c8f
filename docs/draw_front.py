"""Draws the picture of README and of the first page into ``docs/_static``, light and dark.

``python docs/draw_front.py`` writes ``kernels-*.png``. The photograph comes with matplotlib; it is
by the US Navy and in the public domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.cbook import get_sample_data
from matplotlib.patheffects import withStroke
from PIL import Image

import invocupy

FOLDER = Path(__file__).parent / "_static"
INKS = {"light": "#1f2328", "dark": "#e6edf3"}
PLACES = {"A": (15, 66), "B": (33, 53), "C": (55, 33)}
PAD = 3
WIDE, HIGH = 9, 4.75


def draw_kernels(ink: str, path: Path) -> None:
    """One blur for all pixels of a photograph, and beneath it a kernel for each."""
    photo = plt.imread(get_sample_data("grace_hopper.jpg", asfileobj=False)) / np.float32(255)
    photo = photo[20:260, 148:388].reshape(80, 3, 80, 3, 3).mean((1, 3))
    x = np.pad(photo.transpose(2, 0, 1)[None], ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)), "edge")
    seen = np.lib.stride_tricks.sliding_window_view(x, (7, 7), (2, 3))
    unlike = ((seen - x[..., PAD:-PAD, PAD:-PAD, None, None]) ** 2).sum(1)
    own = np.exp(-unlike / 0.02).transpose(0, 3, 4, 1, 2)[:, None]
    own /= own.sum((2, 3), keepdims=True)
    rows = {"Convolution": np.full_like(own, 1 / 49), "Involution": own}
    figure = plt.figure(figsize=(WIDE, HIGH))
    for line, (name, kernel) in enumerate(rows.items()):
        row = [place(figure, line, column) for column in range(5)]
        row[0].imshow(photo)
        row[0].set_ylabel(name, fontsize=15, color=ink, fontweight="bold", labelpad=6)
        result = invocupy.involution(x, kernel, padding="valid")[0].transpose(1, 2, 0)
        row[4].imshow(result.clip(0, 1))
        says = "one kernel for all pixels" if line == 0 else "a kernel for each pixel"
        row[2].set_title(says, fontsize=13, color=ink)
        for (letter, (i, j)), axes in zip(PLACES.items(), row[1:4], strict=True):
            for colour, width in (("black", 3.5), ("white", 1.8)):
                box = plt.Rectangle((j - 3.5, i - 3.5), 7, 7, fill=False, ec=colour, lw=width)
                row[0].add_patch(box)
            around = [withStroke(linewidth=3, foreground="black")]
            style = {"color": "white", "fontsize": 13, "weight": "bold", "path_effects": around}
            row[0].text(j + 5, i + 2.5, letter, **style)
            drawn = axes.imshow(kernel[0, 0, :, :, i, j], cmap="viridis", vmin=0, vmax=0.06)
            axes.text(0.1, 0.4, letter, va="center", ha="center", **style)
        if line == 0:
            row[0].set_title("photograph", fontsize=13, color=ink)
            row[4].set_title("result", fontsize=13, color=ink)
    bar = figure.add_axes((0.3, 0.1, 0.4, 0.025))
    bar = figure.colorbar(drawn, cax=bar, orientation="horizontal", label="weight of a pixel")
    bar.ax.xaxis.label.set(color=ink, fontsize=12)
    bar.ax.tick_params(colors=ink, labelsize=11)
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=100, transparent=True)
    plt.close(figure)
    with Image.open(path) as whole:
        whole.quantize(256).save(path, optimize=True)


def place(figure: Any, line: int, column: int) -> Any:
    """Axes without a frame, in a grid of squares."""
    side, gap, left, top = 1.6, 0.11, 0.45, 0.35
    x, y = left + column * (side + gap), HIGH - top - side - line * (side + 0.4)
    axes = figure.add_axes((x / WIDE, y / HIGH, side / WIDE, side / HIGH), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def main() -> None:
    for theme, ink in INKS.items():
        draw_kernels(ink, FOLDER / f"kernels-{theme}.png")


if __name__ == "__main__":
    main()
