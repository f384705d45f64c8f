"""Draws the figures of ``benchmarks/results`` as charts, each for light and dark pages.

``python docs/draw_charts.py`` writes those of README into ``docs/_static``; ``draw_pictures.py``
draws the others when the documentation is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
THEMES = {
    "light": {"ink": "#1f2328", "ours": "#0072b2", "rest": "#9aa4ae", "grid": "#d5dae0"},
    "dark": {"ink": "#e6edf3", "ours": "#56b4e9", "rest": "#6e7781", "grid": "#3a424b"},
}
# Colours apart for all kinds of colour vision, and a mark of its own for each.
MARKS = {
    "unfold": ("#d55e00", "o"), "shift": ("#e69f00", "s"), "shift, compiled": ("#cc79a7", "D"),
    "depthwise convolution": ("#009e73", "^"), "3x3 convolution": ("#56b4e9", "v"),
    "unfold, compiled": ("#999999", "X"), "2-D": ("#009e73", "P"), "torch unfold": ("#d55e00", "o"),
    "torch.compile, shifts": ("#cc79a7", "D"), "one thread per output": ("#e69f00", "s"),
}  # fmt: skip
Theme = dict[str, str]
Row = dict[str, Any]


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def draw(folder: Path, name: str, chart: Callable[[Theme], Any], says: str = "") -> None:
    """Write a chart for light and for dark pages; glyphs are outlines, so it needs no font."""
    about = {"Date": None, "Description": says}
    for theme, colours in THEMES.items():
        ink = dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colours["ink"]
        )
        style = {"font.size": 11, "svg.hashsalt": name, "grid.color": colours["grid"], **ink}
        with mpl.rc_context(style):
            figure = chart(colours)
            figure.savefig(folder / f"{name}-{theme}.svg", transparent=True, metadata=about)
            plt.close(figure)


def number(value: float) -> str:
    """Three digits, and commas between thousands."""
    return f"{float(f'{value:.3g}'):,.10g}"


def bars(theme: Theme, rows: Sequence[tuple[str, float]], unit: str, label: str) -> Any:
    """Horizontal bars with their numbers; the first is ours."""
    figure, axes = plt.subplots(figsize=(5, 0.85 + 0.4 * len(rows)), layout="constrained")
    names, values = zip(*rows, strict=True)
    colours = [theme["ours" if name.startswith("invocupy") else "rest"] for name in names]
    drawn = axes.barh(names, values, color=colours, height=0.7)
    axes.bar_label(drawn, [f" {number(v)} {unit}" for v in values], color=theme["ink"])
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * (1.35 + 0.06 * len(unit)))
    figure.suptitle(label, x=0.01, ha="left", fontsize=11)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        text.set_fontweight("bold" if name.startswith("invocupy") else "normal")
    return figure


def ratios(theme: Theme, rows: Sequence[tuple[str, dict[str, float]]]) -> Any:
    """For each size the times of others over ours, on a logarithmic axis."""
    figure, axes = plt.subplots(figsize=(5, 1.9 + 0.34 * len(rows)), layout="constrained")
    for kind in dict.fromkeys(name for _, times in rows for name in times if name != "invocupy"):
        points = [(times[kind], i) for i, (_, times) in enumerate(rows) if kind in times]
        colour, mark = MARKS.get(kind, (theme["ink"], "*"))
        axes.scatter(*zip(*points, strict=True), c=colour, marker=mark, s=46, label=kind, zorder=3)
    axes.axvline(1, color=theme["ours"], linewidth=2.5, label="invocupy", zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # room for the marks of the first and last row
    axes.grid()
    axes.set_axisbelow(True)
    axes.set_xlabel("time, as a multiple of invocupy's")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def size(row: Row) -> str:
    """Such as 64x32x32, K=3, with the batch in front."""
    text = f"{'×'.join(map(str, row['shape']))}, K={row['K']}"
    return text + (f", stride {row['stride']}" if row.get("stride", 1) > 1 else "")


def of_operator(rows: Sequence[Row], what: str) -> list[tuple[str, dict[str, float]]]:
    """Times over ours on all cores."""
    chosen = [r for r in rows if r["what"] == what and r["threads"] > 1 and "ms" in r]
    return [
        (size(r), {k: v["median"] / r["ms"]["invocupy"]["median"] for k, v in r["ms"].items()})
        for r in chosen
    ]


def steps(rows: Sequence[Row], what: str, layers: int, key: str = "ms") -> list[tuple[str, float]]:
    """The variants of one row, ours first."""
    (row,) = (r for r in rows if r["what"] == what and r["layers"] == layers)
    figures = {k: v["median"] if key == "ms" else v for k, v in row[key].items()}
    names = {"PyTorch": "PyTorch, eager", "PyTorch, shift, compiled": "PyTorch, compiled shift",
             "PyTorch, unfold, compiled": "PyTorch, compiled unfold"}  # fmt: skip
    ordered = sorted(figures.items(), key=lambda item: item[1])
    return [(names.get(k, k), v) for k, v in ordered]


def values(rows: Sequence[tuple[str, float]], unit: str) -> str:
    """The bars in words."""
    return "; ".join(f"{name}: {number(value)} {unit}" for name, value in rows)


def speed() -> list[tuple[str, float]]:
    """The bars of README's chart."""
    return [r for r in steps(read("cpu")["rows"], "training step", 10) if "recompute" not in r[0]]


def draw_speed(folder: Path = HERE / "_static") -> None:
    """README's chart: a training step of ten blocks."""
    rows = speed()
    label = "Training step, 10 blocks, batch 128, two CPU cores"
    draw(folder, "speed", lambda theme: bars(theme, rows, "ms", label), values(rows, "ms"))


def draw_benchmarks(folder: Path) -> None:
    """The charts of ``benchmarks.md``."""
    cpu, volumes, gpu = (read(name)["rows"] for name in ("cpu", "volumes", "gpu-network-h100"))
    for file, rows in ("cpu", cpu), ("volumes", volumes):
        for what, name in ("forward", "forward"), ("both gradients", "gradients"):
            chosen = of_operator(rows, what)
            draw(folder, f"{file}-{name}", lambda theme, chosen=chosen: ratios(theme, chosen))
    for file, what, layers, key, unit, label in (
        ("cpu-step", "training step", 50, "ms", "ms", "Training step, 50 blocks, batch 64"),
        ("cpu-step-10", "training step", 10, "ms", "ms", "Training step, 10 blocks, batch 128"),
        ("cpu-inference", "inference", 50, "ms", "ms", "Evaluation, 50 blocks, batch 64"),
        ("cpu-memory", "peak memory of a training step", 50, "MB", "MB",
         "Peak memory of a training step, 50 blocks, batch 64"),
    ):  # fmt: skip
        chosen = steps(cpu, what, layers, key)
        draw(folder, file, lambda theme, c=chosen, u=unit, s=label: bars(theme, c, u, s))
    times: dict[str, dict[str, float]] = {}
    for row in read("gpu-h100")["results"]:
        if row["op"] == "all three":
            shape = row["shape"].strip("(").replace(", ", "×").replace(") ", ", ")
            times.setdefault(f"{shape}, {row['dtype']}", {})[row["contender"]] = row["ms"]
    over = [(name, {k: v / t["invocupy"] for k, v in t.items()}) for name, t in times.items()]
    draw(folder, "gpu", lambda theme: ratios(theme, over))
    rates = sorted(((r["contender"], r["images_per_second"]) for r in gpu), key=lambda r: -r[1])
    label = "Training, 50 blocks, batch 256, H100, earlier kernels"
    draw(folder, "gpu-network", lambda theme: bars(theme, rates, "images/s", label))


if __name__ == "__main__":
    draw_speed()
