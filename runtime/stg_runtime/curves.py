"""Curves as SVG text, coloured by the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 200  # of the drawing's own units; pages scale it
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 22
_MOST_POINTS = 300  # per curve; more are thinned, keeping the extremes


def chart(
    series: Sequence[Sequence[Point]], marks: Sequence[float] = (), *, logarithmic: bool = False
) -> str:
    """Draw curves over one axis.

    Args:
        series: of (x, y), x rising, finite; drawn with the classes `first`, `second`.
        marks: x of dashed vertical lines.
        logarithmic: of y; values that are not positive are left out.

    Returns:
        An `<svg>` element; without points, one with an empty frame.
    """
    curves = [
        [(x, math.log10(y) if logarithmic else y) for x, y in points if y > 0 or not logarithmic]
        for points in series
    ]
    points = [point for curve in curves for point in curve]
    if not points:
        points = [(0.0, 0.0)]
    x_low, x_high = _span([x for x, _ in points])
    y_low, y_high = _span([y for _, y in points])

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for y in _decades(y_low, y_high) if logarithmic else _ticks(y_low, y_high, 4):
        text = f"{10**y if logarithmic else y:.4g}"
        parts.append(
            f'<line class="frame" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down(y):.1f}" '
            f'y2="{down(y):.1f}"/><text x="{_LEFT - 5}" y="{down(y) + 4:.1f}" '
            f'text-anchor="end">{text}</text>'
        )
    for x in _ticks(x_low, x_high, 5):
        anchor = "end" if across(x) > WIDTH - 20 else "middle"
        parts.append(
            f'<text x="{across(x):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{x:g}</text>'
        )
    for x in marks:
        parts.append(
            f'<line class="returned" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{_TOP}" '
            f'y2="{HEIGHT - _BOTTOM}"/>'
        )
    for name, curve in zip(("first", "second"), curves, strict=False):
        drawn = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in _thinned(curve))
        parts.append(f'<polyline class="{name}" points="{drawn}"/>')
    return "".join([*parts, "</svg>"])


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) / 10 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Exponents of 1, 2, 5, 10, ... between low and high; of powers of ten where those are many."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    fine = [k + math.log10(digit) for k in exponents for digit in (1, 2, 5)]
    fine = [y for y in fine if low <= y <= high]
    if len(fine) <= 5:
        return fine
    every = math.ceil(len(exponents) / 6)
    return [float(k) for k in exponents if low <= k <= high and k % every == 0]


def _thinned(curve: Sequence[Point]) -> list[Point]:
    if len(curve) <= _MOST_POINTS:
        return list(curve)
    kept = []
    groups = _MOST_POINTS // 2
    for group in range(groups):
        part = curve[group * len(curve) // groups : (group + 1) * len(curve) // groups]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept
