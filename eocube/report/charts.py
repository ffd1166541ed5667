"""Draws the report page's charts as inline SVG: histograms and bars over time, in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

import numpy as np

WIDTH, HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 14, 34


def histogram(values: Sequence[float], label: str, *, bins: int = 24) -> str:
    """How many windows have which value; the mean is marked."""
    data = np.asarray([v for v in values if np.isfinite(v)], dtype=np.float64)
    if data.size == 0:
        return ""
    low, high = float(data.min()), float(data.max())
    if high - low < 1e-9:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    counts, steps = np.histogram(data, bins=bins, range=(low, high))
    marks = [(float(data.mean()), f"mean {data.mean():.3g}", "mark")]
    return _bars(steps.tolist(), counts.tolist(), label, "windows", marks)


def over_time(edges: Sequence[float], rates: Sequence[float], mean: float) -> str:
    """Windows a second over working time, the mean as a line; `edges` in seconds."""
    scale, unit = (1.0, "s") if edges[-1] < 600 else (60.0, "min") if edges[-1] < 36000 else (3600.0, "h")
    chart = _bars([e / scale for e in edges], list(rates), f"working time, {unit}", "windows/s", [])
    y = _y(mean, _ceiling(max(rates, default=0.0)))
    line = f'<line class="mark" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return chart.replace("</svg>", f"{line}</svg>")


def _bars(
    edges: Sequence[float], heights: Sequence[float], label: str, unit: str, marks: Sequence[tuple[float, str, str]]
) -> str:
    top, low, high = _ceiling(max(heights, default=0.0)), edges[0], edges[-1]

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{unit} by {label}")}">']
    for level in (0.0, 0.5, 1.0):
        y = _y(level * top, top)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{level * top:g}</text>')
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        if height <= 0:
            continue
        y = _y(height, top)
        wide = max(x(right) - x(left) - 1.0, 0.8)
        tall = _y(0, top) - y
        parts.append(
            f'<rect class="bar" x="{x(left):.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}">'
            f"<title>{left:.4g} to {right:.4g}: {height:.4g} {unit}</title></rect>"
        )
    for value in _ticks(low, high):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle">{value:g}</text>')
    for number, (value, text, kind) in enumerate(marks):
        at = x(value)
        parts.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 4}" y2="{_y(0, top):.1f}"/>')
        anchor, nudge = ("start", 4) if at < WIDTH * 0.6 else ("end", -4)
        parts.append(
            f'<text class="note" x="{at + nudge:.1f}" y="{_TOP + 4 + 12 * number}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(label)}</text></svg>')
    return "".join(parts)


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)


def _ceiling(value: float) -> float:
    """The next round number above: 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** floor(log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= value * (1 - 1e-9))


def _ticks(low: float, high: float) -> list[float]:
    step = _ceiling((high - low) / 5)
    return [round(k * step, 10) for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
