"""Line charts as SVG; the page's style gives the colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 40


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within an interval: about ``count`` multiples of 1, 2 or 5 times ten to the n.

    Examples
    --------
    >>> ticks(0, 1), ticks(1, 4), ticks(0.0, 0.01)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.002, 0.004, 0.006, 0.008, 0.01])
    """
    rough = (high - low) / count
    if not 0 < rough < math.inf:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def chart(
    title: str,
    xs: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float | None]]],
    limits: tuple[float, float] | None = None,
    text: Callable[[float], str] = "{:g}".format,
) -> str:
    """A chart of lines over epochs; each line's name is its CSS class.

    Parameters
    ----------
    title
        For those who cannot see it.
    xs
        Epochs.
    lines
        Names and values; None is a gap.
    limits
        Of the vertical axis; by default from 0, or the lowest value, to the highest one.
    text
        How a number of the vertical axis is written.

    Returns
    -------
    str

    Examples
    --------
    >>> print(chart("loss", [1, 2], [("train", [2.0, 1.0])])[:44])
    <svg role="img" viewBox="0 0 400 260"><title
    """
    known = [y for _, ys in lines for y in ys if y is not None and math.isfinite(y)]
    low, high = limits or (min(0.0, *known, 0.0), max(known, default=1.0))
    high = high if high > low else low + 1
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 0.5, right + 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}"><title>{escape(title)}</title>']
    for level in ticks(low, high):
        _, v = at(left, level)
        parts.append(f'<path class="grid" d="M{_LEFT} {v:.1f}H{_WIDTH - _RIGHT}"/>')
        place = f'x="{_LEFT - 7}" y="{v + 4:.1f}"'
        parts.append(f'<text {place} text-anchor="end">{text(level)}</text>')
    for epoch in ticks(left, right):
        if epoch == int(epoch):
            u, _ = at(epoch, low)
            place = f'x="{u:.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
            parts.append(f'<text {place} text-anchor="middle">{epoch:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">epoch</text>')
    for name, ys in lines:
        path, pen_up = [], True
        for x, y in zip(xs, ys, strict=True):
            if y is None or not math.isfinite(y):
                pen_up = True
                continue
            u, v = at(x, min(max(y, low), high))
            path.append(f"{'M' if pen_up else 'L'}{u:.1f} {v:.1f}")
            pen_up = False
            if len(xs) <= 30:
                parts.append(f'<circle class="{escape(name)}" cx="{u:.1f}" cy="{v:.1f}" r="3"/>')
        parts.append(f'<path class="line {escape(name)}" d="{"".join(path)}"/>')
    return "".join(parts) + "</svg>"
