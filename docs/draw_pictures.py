"""Draws the pictures of the documentation into ``docs/pictures``; the build calls it.

Everything comes from the generated images of ``shapes10``, fixed seeds and the results of
``benchmarks/evidence.py``: no download, and the same pictures every time.
"""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke

import invocupy
from invocupy import functional as F
from invocupy.data import shapes10
from invocupy.train import Config, fit

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import scaling_model
from draw_charts import draw_benchmarks
from evidence_page import read, seeds, spread

FOLDER = Path(__file__).parent / "pictures"
RESULTS = FOLDER.parents[1] / "benchmarks" / "results" / "evidence"
STAR, CLEAN = 31, 10
KERNELS = {
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "blur": [[1 / 9] * 3] * 3,
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "vertical edges": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "outline": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
}
INK, ACCENT = "#1f2933", "#67e8f9"
LINES = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"


def image_of(index: int) -> Any:
    """One image as (1, 3, 32, 32) in [0, 1]."""
    return shapes10(40, seed=0)[0][index : index + 1] / 255


def as_picture(image: Any) -> Any:
    return np.clip(image[0].transpose(1, 2, 0), 0, 1)


def show(axes: Any, picture: Any, title: str = "", **options: Any) -> None:
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_title(title, fontsize=12, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])


def show_kernel(axes: Any, kernel: Any, title: str = "", digits: bool = True) -> None:
    kernel = np.asarray(kernel)
    limit = abs(kernel).max()
    show(axes, kernel, title, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if digits:
        for (i, j), value in np.ndenumerate(kernel):
            text = f"{value:.2g}".replace("0.11", "1/9").replace("-", "−")
            light = "white" if abs(value) > 0.6 * limit else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=12, color=light)


def save(figure: Any, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.png", dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def bilateral(pixels: Any, size: int = 5, softness: float = 0.2) -> Any:
    """A kernel for each pixel: neighbours of a like colour count, others do not (tutorial.md)."""
    pad = size // 2
    padded = np.pad(pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    difference = ((windows - pixels[..., None, None]) ** 2).sum(axis=1)
    weights = np.exp(-difference / (2 * softness**2))
    weights /= weights.sum(axis=(-2, -1), keepdims=True)
    return weights.transpose(0, 3, 4, 1, 2)[:, None]


def draw_convolutions() -> None:
    """Five kernels, and what each makes of the same image."""
    pixels = image_of(CLEAN)
    figure, axes = plt.subplots(2, 5, figsize=(10, 4.2), layout="constrained")
    for (name, kernel), (above, below) in zip(KERNELS.items(), axes.T, strict=True):
        weight = np.tile(np.array(kernel, float), (3, 1, 1, 1))
        padded = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        out = F.conv2d(padded, weight, groups=3)
        show_kernel(above, kernel, name)
        show(below, as_picture(abs(out) if weight.sum() == 0 else out))
    save(figure, "convolutions")


def draw_windows() -> None:
    """The same three places under a convolution and under an involution."""
    pixels, places = image_of(CLEAN), {"A": (5, 25), "B": (24, 16), "C": (20, 21)}
    kernel = bilateral(pixels)
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.3), layout="constrained")
    rows = {"convolution": np.full_like(kernel, 1 / 25), "involution": kernel}
    for row, (name, kernels) in zip(axes, rows.items(), strict=True):
        show(row[0], as_picture(pixels), name)
        for (place, (i, j)), other in zip(places.items(), row[1:], strict=True):
            box = plt.Rectangle((j - 2.5, i - 2.5), 5, 5, fill=False, color=ACCENT, linewidth=2)
            row[0].add_patch(box)
            letter = row[0].text(
                j + 3, i + 1.2, place, color=ACCENT, fontsize=13, fontweight="bold"
            )
            letter.set_path_effects([withStroke(linewidth=3, foreground=INK)])
            drawn = other.imshow(kernels[0, 0, :, :, i, j], cmap="viridis", vmin=0, vmax=0.1)
            other.set_title(f"kernel at {place}", fontsize=12, color=INK)
            other.set(xticks=[], yticks=[])
            other.set_xticks(np.arange(0.5, 4), minor=True)
            other.set_yticks(np.arange(0.5, 4), minor=True)
            other.grid(which="minor", color="white", linewidth=0.5)
            other.tick_params(which="minor", length=0)
    figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, label="weight of a pixel")
    save(figure, "windows")


def draw_by_hand() -> None:
    """A noisy image, blurred by one kernel and by a kernel of its own for each pixel."""
    noise = np.random.default_rng(0).normal(0, 0.06, (1, 3, 32, 32))
    pixels = np.clip(image_of(STAR) + noise, 0, 1)
    padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    kernel = bilateral(pixels, softness=0.25)
    blur = np.full_like(kernel, 1 / 25)
    pictures = {
        "with noise": pixels,
        "convolution": invocupy.involution(padded, blur, padding="valid"),
        "involution": invocupy.involution(padded, kernel, padding="valid"),
    }
    figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.6), layout="constrained")
    for (title, picture), place in zip(pictures.items(), axes, strict=False):
        show(place, as_picture(picture), title)
    drawn = axes[3].imshow(kernel[0, 0, 2, 2], cmap="viridis", vmin=0)
    axes[3].set_title("weight of the pixel itself", fontsize=12, color=INK)
    axes[3].set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes[3], shrink=0.75)
    save(figure, "by_hand")


def draw_learned() -> None:
    """The kernels that a layer makes, before and after a short training."""
    config = Config(layers=2, epochs=4, limit=3000, lr=0.03, device="cpu")
    images, _ = shapes10(6, seed=0, train=False)
    heat = []

    def look(model: Any) -> None:
        model.eval()
        x = (images / 255 - 0.5).astype(np.float32) / np.float32(0.294)
        block = model.blocks[0]
        kernel = block.involution.kernel(block.expand_norm(block.expand(x), relu=True))
        kernel = getattr(kernel, "data", kernel)
        heat.append(kernel.sum(axis=(2, 3)))  # over the taps: (N, G, H, W)
        model.train()

    model = invocupy.models.SimpleModel(num_layers=2, head_relu=True, rng=0)
    look(model)
    fit(config, model=model)
    look(model)
    figure, axes = plt.subplots(3, 6, figsize=(8.5, 4.4), layout="constrained")
    group = heat[1].std(axis=(2, 3)).mean(axis=0).argmax()  # the one with the most to show
    names = "image", "before training", "after training"
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(name, fontsize=11, color=INK)
    for n, column in enumerate(axes.T):
        show(column[0], images[n].transpose(1, 2, 0))
        for place, maps in zip(column[1:], heat, strict=True):
            low, high = np.percentile(maps[:, group], (1, 99))
            show(place, maps[n, group], cmap="magma", vmin=low, vmax=high)
    for row in axes[1:]:
        bar = figure.colorbar(row[0].images[0], ax=row, pad=0.01, aspect=10)
        bar.set_label("sum of a kernel", fontsize=9)
    save(figure, "learned")


def draw_volumes() -> None:
    """Kernels at two voxels, by the network that docs/volumes.md trains."""
    text = (FOLDER.parent / "volumes.md").read_text()
    names: dict[str, Any] = {}
    for example in doctest.DocTestParser().get_examples(text[: text.index("## Denoise a signal")]):
        exec(compile(example.source, "volumes.md", "exec"), names)  # noqa: S102
    kernels, image, noisy = names["kernel"][0], names["clean"][0, 0, 6], names["noisy"][0, 0, 6]
    # The brightest voxel of the slice that is in a ball, and the darkest that is in none.
    inside, outside = (
        np.unravel_index(np.argmax(np.where(where, sign * noisy, -np.inf)), noisy.shape)
        for where, sign in ((image > 0, 1), (image == 0, -1))
    )
    pairs = np.stack([kernels[..., 6, y, x] for y, x in (inside, outside)])
    group = np.abs(pairs[0] - pairs[1]).sum(axis=(1, 2, 3)).argmax()
    pairs = pairs[:, group] / np.abs(pairs[:, group]).max()
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
    for row, (name, (y, x)) in enumerate((("in a ball", inside), ("outside", outside))):
        show(axes[row, 0], image, f"voxel {name}", cmap="gray")
        axes[row, 0].plot(x, y, "s", color=ACCENT, markerfacecolor="none", markersize=9)
        for slice_ in range(3):
            picture = axes[row, 1 + slice_].imshow(
                pairs[row, slice_], cmap="RdBu_r", vmin=-1, vmax=1
            )
            axes[row, 1 + slice_].set_title(("front", "same depth", "back")[slice_], fontsize=12)
            axes[row, 1 + slice_].set_axis_off()
    figure.colorbar(picture, ax=axes, shrink=0.7, label="weight (1: the largest)")
    save(figure, "volumes")


def draw_evidence() -> None:
    """The recorded runs on CIFAR-10: test accuracies with error bars, and over the epochs."""
    networks = seeds(read(RESULTS))
    if not networks:
        return
    order = sorted(networks, key=lambda name: spread(networks[name])[0])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4), layout="constrained")
    for i, name in enumerate(order):
        runs = networks[name]
        mean, low, high = (100 * share for share in spread(runs))
        line = {"color": LINES[i % len(LINES)], "linestyle": ("-", "--")[i // len(LINES) % 2]}
        marker = "o" if len(runs) > 1 else "s"
        left.errorbar(
            mean, i, xerr=[[mean - low], [high - mean]], fmt=marker, capsize=4, color=line["color"],
        )  # fmt: skip
        left.annotate(
            f"{mean:.1f} %", (mean, i), (0, 7), textcoords="offset points", ha="center",
            fontsize=9, color=INK,
        )  # fmt: skip
        for run in runs:
            columns = run["history"]
            accuracy = columns.get("val_accuracy") or columns["test_accuracy"]
            right.plot(range(1, len(accuracy) + 1), [100 * share for share in accuracy], **line)
    left.set_yticks(range(len(order)), order)
    left.set_ylim(-0.5, len(order) - 0.2)
    left.margins(x=0.12)  # for the numbers of the first and last
    left.set_xlabel("test accuracy, %", color=INK)
    right.set_xlabel("epoch", color=INK)
    right.set_ylabel("accuracy after each epoch, %", color=INK)
    right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, "evidence")


def draw_scaling() -> None:
    """The predicted share of a step that computes, over the number of ranks, for each link."""
    results = json.loads(RESULTS.with_name("scaling.json").read_text())
    figure, panels = plt.subplots(
        1, len(scaling_model.LINKS), figsize=(8.5, 4.2), sharey=True, layout="constrained"
    )
    ranks = 2 ** np.arange(1, 13)
    for axes, link in zip(panels, scaling_model.LINKS, strict=True):
        for network, colour in zip(scaling_model.networks(results), LINES, strict=False):
            if link not in scaling_model.links_of(network):
                continue
            for group, style in ((None, "-"), (1, "--")):
                share = [scaling_model.efficiency(network, int(n), link, group) for n in ranks]
                name = f"{network['name']}, {network['on']}, {network['images']} images per rank"
                first = style == "-" and axes is panels[1]  # which has them all
                axes.plot(ranks, np.array(share) * 100, style, color=colour,
                          label=name if first else None)  # fmt: skip
        axes.set_title(f"{link.name} (assumed)", fontsize=12, color=INK)
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 8, 64, 512, 4096], ["2", "8", "64", "512", "4,096"])
        axes.set_xlabel("ranks", color=INK)
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].plot([], [], "--", color=INK, label="dashed: batch norms per rank")
    panels[0].set_ylabel("share of a step spent on computing, %", color=INK)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, "scaling")


def draw_all() -> None:
    FOLDER.mkdir(exist_ok=True)
    for draw in (draw_convolutions, draw_windows, draw_by_hand, draw_learned, draw_volumes,
                 draw_evidence, draw_scaling):  # fmt: skip
        draw()
    draw_benchmarks(FOLDER)


if __name__ == "__main__":
    draw_all()
