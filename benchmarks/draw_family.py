"""Draws ``docs/_static/family-*.svg``: what an output pixel reads, and results of family.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE.parent / "docs" / "_static"
COLOURS = {
    "convolution": "#b45309", "involution": "#0e7490", "local attention": "#7c3aed",
    "attention": "#be123c",
}  # fmt: skip
SAYS = {
    "convolution": ("weights learned,", "the same at every pixel"),
    "involution": ("weights made from", "the pixel in the middle"),
    "local attention": ("weights made from pairs:", "the middle, each neighbour"),
    "attention": ("weights made from pairs:", "the middle, every pixel"),
}
INK, GRID = "#1f2933", "#cbd2d9"


def text(x: float, y: float, content: str, anchor: str = "middle", weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{content}</text>'


def svg(width: int, height: int, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" viewBox="0 0 {width} {height}" '
    )
    head += 'font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"


def windows(size: int = 9, reach: int = 2, cell: int = 16) -> str:
    """One panel per method: pixels that it reads are filled, those that give weights ringed."""
    parts, middle, gap, tall = [], size // 2, 28, 34 + size * cell + 50
    for panel, (kind, colour) in enumerate(COLOURS.items()):
        left, top = gap + panel % 2 * (size * cell + gap), panel // 2 * tall + 34
        for i in range(size):
            for j in range(size):
                x, y = left + j * cell, top + i * cell
                near = max(abs(i - middle), abs(j - middle)) <= reach
                seen = near or kind == "attention"
                far = math.hypot(i - middle, j - middle)
                fill = colour if seen else "none"
                shade = f'fill="{fill}" fill-opacity="{0.75 / (1 + far / 3):.2f}"'
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" {shade} '
                    f'stroke="{GRID}"/>'
                )
                asks = i == j == middle and kind != "convolution"
                if asks or (seen and kind.endswith("attention")):
                    ring = f'r="{5 if asks else 2.5}" fill="none" stroke="{INK}"'
                    parts.append(f'<circle cx="{x + cell / 2}" cy="{y + cell / 2}" {ring}/>')
        centre = left + size * cell / 2
        parts.append(text(centre, top - 12, kind, weight="bold"))
        for line, words in enumerate(SAYS[kind]):
            parts.append(text(centre, top + size * cell + 20 + 16 * line, words))
    return svg(gap + 2 * (size * cell + gap), 2 * tall, parts)


def chart(
    rows: list[dict[str, Any]], across: Callable[[Any], float], up: Callable[[Any], float],
    labels: tuple[str, str], ticks: tuple[list[float], list[float]],
) -> str:  # fmt: skip
    """Lines on two logarithmic axes."""
    left, right, top, bottom = 62, 330, 20, 270
    (low_x, high_x), (low_y, high_y) = ((min(t), max(t)) for t in ticks)

    def at(x: float, y: float) -> tuple[float, float]:
        u, v = math.log(x / low_x) / math.log(high_x / low_x), math.log(y / low_y)
        return left + u * (right - left), bottom - v / math.log(high_y / low_y) * (bottom - top)

    parts = [text((left + right) / 2, bottom + 40, labels[0])]
    parts.append(f'<g transform="rotate(-90 14 {(top + bottom) / 2})">')
    parts.append(text(14, (top + bottom) / 2, labels[1]) + "</g>")
    for x in ticks[0]:
        parts.append(text(at(x, low_y)[0], bottom + 18, f"{x:g}"))
    for y in ticks[1]:
        v = at(low_x, y)[1]
        parts.append(f'<path d="M{left} {v:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(text(left - 6, v + 4, f"{y:,g}", "end"))
    names: list[tuple[float, float, str]] = []
    for kind, colour in COLOURS.items():
        points = [at(across(row), up(row)) for row in rows if row["kind"] == kind]
        if points:
            path = "L".join(f"{u:.1f} {v:.1f}" for u, v in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
            u, v = points[-1]
            parts.append(f'<circle cx="{u:.1f}" cy="{v:.1f}" r="4" fill="{colour}"/>')
            names.append((v + 4, u + 8, kind))
    lowest = 0.0
    for v, u, kind in sorted(names):
        lowest = max(v, lowest + 16)  # so that names do not overlap
        parts.append(text(u, lowest, kind, "start"))
    return svg(440, 320, parts)


def main() -> None:
    """Draw all pictures."""
    rows = json.loads((HERE / "results" / "family.json").read_text())["rows"]

    def of(grows: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["grows"] == grows]

    def milliseconds(row: Any) -> float:
        return float(row["forward_ms"] + row["backward_ms"])

    def side(name: str) -> Callable[[Any], float]:
        return lambda row: float(row[name])

    time, axis = "forward and backward, ms", [0.1, 1, 10, 100, 1000, 10000]
    pictures = {
        "windows": windows(),
        "size": chart(of("size"), side("size"), milliseconds,
                      ("side of the image, pixels", time), ([8, 16, 32, 64, 128], axis)),
        "memory": chart(of("size"), side("size"), side("peak_mb"),
                        ("side of the image, pixels", "peak memory, MB"),
                        ([8, 16, 32, 64, 128], [0.1, 1, 10, 100, 1000])),
        "kernel": chart(of("kernel"), side("kernel"), milliseconds,
                        ("side of the window, pixels", time), ([3, 5, 7, 9, 11, 13], axis)),
        "channels": chart(of("channels"), side("channels"), milliseconds,
                          ("channels", time), ([16, 32, 64, 128, 256], axis)),
    }  # fmt: skip
    for name, picture in pictures.items():
        (FOLDER / f"family-{name}.svg").write_text(picture)


if __name__ == "__main__":
    main()
