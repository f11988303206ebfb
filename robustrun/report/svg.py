"""Figures as inline SVG: no library, no script, in the colours of the page."""

import math
from html import escape

import numpy as np

from robustrun.roles import Figure

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 46
COLOURS = 6  # of the style sheet: .c0 to .c5; then they repeat, dashed


def draw(figure: Figure) -> str:
    """A figure with its legend; screen readers hear its title and what its curves are."""
    curves = {label: columns for label, columns in figure.series.items() if len(columns) >= 2 and len(columns[0])}
    if not curves:
        return ""
    x = _Scale([c[0] for c in curves.values()], figure.xscale, _LEFT, _WIDTH - _RIGHT)
    y = _Scale([v for c in curves.values() for v in c[1:]], figure.yscale, _HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(x, y, figure)]
    parts += [_curve(i, columns, x, y, figure.kind) for i, columns in enumerate(curves.values())]
    spoken = escape(f"{figure.title}: {', '.join(curves)}")
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 26 8" aria-hidden="true"><path class="{_style(i)}" d="M0 4H26"/></svg>'
        f"{escape(label)}</li>"
        for i, label in enumerate(curves)
    )
    return (
        f'<figure><figcaption>{escape(figure.title)}</figcaption><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{spoken}">{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )


def _style(i: int) -> str:
    return f"line c{i % COLOURS}" + (" dashed" if (i // COLOURS) % 2 else "")


class _Scale:
    """Data to pixels, with ticks at round numbers."""

    def __init__(self, arrays: list[np.ndarray], kind: str, first: float, last: float):
        values = np.concatenate([np.asarray(a, dtype=float) for a in arrays])
        values = values[np.isfinite(values) & ((values > 0) | (kind == "linear"))]
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        self.log = kind == "log" and low > 0
        if low == high:
            low, high = (low / 2, high * 2) if self.log else (low - 0.5, high + 0.5)
        self.low, self.high = self._map(low), self._map(high)
        self.first, self.last = first, last
        self.ticks = _decades(low, high) if self.log else _round_numbers(low, high)

    def _map(self, value):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(value) if self.log else value

    def __call__(self, value):
        return self.first + (self._map(value) - self.low) / (self.high - self.low) * (self.last - self.first)


def _round_numbers(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= 6)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [1, 2, 5] if len(decades) <= 3 else [1]
    return [t for d in decades for f in every if low <= (t := f * 10.0**d) <= high]


def _frame(x: _Scale, y: _Scale, figure: Figure) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path class="grid" d="M{_LEFT} {y(t):.1f}H{right}"/>' for t in y.ticks]
    parts += [f'<text x="{_LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>' for t in y.ticks]
    parts += [f'<text x="{x(t):.1f}" y="{bottom + 17}" text-anchor="middle">{t:g}</text>' for t in x.ticks]
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(figure.xlabel)}</text>')
    turn = f"translate(13 {(_TOP + bottom) / 2}) rotate(-90)"
    parts.append(f'<text transform="{turn}" text-anchor="middle">{escape(figure.ylabel)}</text>')
    return "".join(parts)


def _curve(i: int, columns: tuple, x: _Scale, y: _Scale, kind: str) -> str:
    px, py = x(np.asarray(columns[0], float)), y(np.asarray(columns[1], float))
    keep = np.isfinite(px) & np.isfinite(py)
    points = list(zip(px[keep], py[keep], strict=True))
    parts = []
    if len(columns) == 4 and keep.sum() > 1:
        low, high = (y(np.asarray(c, float))[keep] for c in columns[2:])
        band = [*zip(px[keep], high, strict=True), *zip(px[keep][::-1], low[::-1], strict=True)]
        parts.append(f'<path class="band c{i % COLOURS}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in band)}Z"/>')
    if kind != "scatter" and len(points) > 1:
        if kind == "step":
            path = f"M{points[0][0]:.1f} {points[0][1]:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in points[1:])
        else:
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f'<path class="{_style(i)}" d="{path}"/>')
    if kind == "scatter" or len(points) <= 20:
        parts += [f'<circle class="dot c{i % COLOURS}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    return "".join(parts)
