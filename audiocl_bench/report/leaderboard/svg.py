"""Small drawings as inline SVG: pure functions from numbers to markup.

Colours, fonts and line widths come from the style sheet through class names, so a drawing follows light and dark. Every
drawing says in words what it shows, and lines differ in dash and marker as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

LEVELS = 10
"""Steps of the heat map's scale: level k is 100 k / LEVELS percent and more."""

_MOST_CELLS = 40  # rows of a heat map; a longer stream is drawn in blocks of sessions
_NUMBERS_UP_TO = 15  # rows of a heat map whose cells have room for their number


@dataclass(frozen=True)
class Series:
    """One line of a plot: a name, its values in order (NaN where there is none), and their half intervals if any."""

    name: str
    values: Sequence[float]
    half_widths: Sequence[float] = ()


def sparkline(
    values: Sequence[float],
    *,
    told: str,
    low: float = 0.0,
    high: float = 100.0,
    width: int = 100,
    height: int = 26,
) -> Markup:
    """Draw values in percent as a small line; NaN is passed over.

    Args:
        values: one per session.
        told: what it shows, in words.
        low, high: what the bottom and the top stand for.
        width, height: in pixels.
    """
    pad = 3.0
    x, y = _scale(0, max(1, len(values) - 1), pad, width - pad), _scale(low, high, height - pad, pad)
    points = [(x(t), y(value)) for t, value in enumerate(values) if not math.isnan(value)]
    if len(values) == 1:
        points = [(width - pad, point[1]) for point in points]
    line = [_tag("polyline", points=_points(points), cls="line")] if len(points) > 1 else []
    end = [_tag("circle", cx=points[-1][0], cy=points[-1][1], r=2.2, cls="dot")] if points else []
    frame = [_tag("line", x1=pad, x2=width - pad, y1=y(v), y2=y(v), cls="frame") for v in (low, high)]
    return _drawing("spark", width, height, told, [*frame, *line, *end])


def interval(
    mean: float, half: float, low: float, high: float, *, told: str, width: int = 116, height: int = 18
) -> Markup:
    """Draw a mean as a dot with its interval as a line, on the scale from `low` to `high`; an interval may be cut."""
    pad = 5.0
    x = _scale(low, high, pad, width - pad)
    middle = height / 2
    parts = [_tag("line", x1=pad, x2=width - pad, y1=middle, y2=middle, cls="frame")]
    if not math.isnan(half):
        first, last = (x(min(max(end, low), high)) for end in (mean - half, mean + half))
        parts.append(_tag("line", x1=first, x2=last, y1=middle, y2=middle, cls="reach"))
        for end, at in ((mean - half, first), (mean + half, last)):
            if low <= end <= high:
                parts.append(_tag("line", x1=at, x2=at, y1=middle - 3.5, y2=middle + 3.5, cls="reach"))
    parts.append(_tag("circle", cx=x(mean), cy=middle, r=3.4, cls="dot"))
    return _drawing("interval", width, height, told, parts)


def nice_range(lows: Iterable[float], highs: Iterable[float]) -> tuple[float, float]:
    """Return a round range within 0..100 that holds all these values, for `interval`; NaN is passed over."""
    bottom = min((v for v in lows if not math.isnan(v)), default=0.0)
    top = max((v for v in highs if not math.isnan(v)), default=100.0)
    step = 10.0 if top - bottom > 20 else 5.0
    low, high = max(0.0, math.floor(bottom / step) * step), min(100.0, math.ceil(top / step) * step)
    return (low, high) if low < high else (max(0.0, low - step), min(100.0, low + step))


def difference_bar(value: float, limit: float, *, width: int = 96, height: int = 14) -> Markup:
    """Draw a difference as a bar left (negative) or right of zero; decoration beside a number, hidden from readers."""
    x = _scale(-limit or -1.0, limit or 1.0, 2, width - 2)
    start, end = sorted((x(0), x(value)))
    side = "plus" if value >= 0 else "minus"
    parts = [
        _tag("rect", x=start, y=3, width=end - start, height=height - 6, cls=f"bar {side}"),
        _tag("line", x1=x(0), x2=x(0), y1=0, y2=height, cls="axis"),
    ]
    return _drawing("bars", width, height, "", parts)


def curves(series: Sequence[Series], *, told: str, low: float = 0.0, high: float = 100.0, zero: bool = False) -> Markup:
    """Draw lines over sessions with an axis in percent or points; names stand at the lines' ends.

    Args:
        series: lines of equal length, at most four.
        told: what it shows, in words.
        low, high: ends of the vertical axis.
        zero: draw a line at zero.
    """
    width, height, left, right, top, bottom = 640, 300, 44, 118, 14, 40
    count = max(len(line.values) for line in series)
    x = _scale(0, max(1, count - 1), left, width - right)
    y = _scale(low, high, height - bottom, top)
    parts = []
    for tick in ticks(low, high):
        parts.append(_tag("line", x1=left, x2=width - right, y1=y(tick), y2=y(tick), cls="grid"))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}".replace("-", "−"), "end"))
    parts += [_text(x(t), height - bottom + 18, str(t), "middle") for t in session_ticks(count)]
    parts.append(_text((left + width - right) / 2, height - 4, "after session", "middle"))
    if zero:
        parts.append(_tag("line", x1=left, x2=width - right, y1=y(0), y2=y(0), cls="axis"))
    ends: list[tuple[float, int, str]] = []
    for number, line in enumerate(series):
        points = [(x(t), y(v), v) for t, v in enumerate(line.values) if not math.isnan(v)]
        if not points:
            continue
        for t, half in enumerate(line.half_widths):
            if not math.isnan(half) and not math.isnan(line.values[t]):
                a, b = (y(min(max(line.values[t] + sign * half, low), high)) for sign in (-1, 1))
                parts.append(_tag("line", x1=x(t), x2=x(t), y1=a, y2=b, cls=f"reach s{number}"))
        parts.append(_tag("polyline", points=_points([p[:2] for p in points]), cls=f"line s{number}"))
        shown = points if count <= 24 else [points[-1]]
        parts += [_marker(px, py, number) for px, py, _ in shown]
        ends.append((points[-1][1], number, f"{line.name} {points[-1][2]:.1f}".replace("-", "−")))
    for at, number, name in _apart(ends, 15.0, top, height - bottom):
        parts.append(_marker(width - right + 14, at, number))
        parts.append(_text(width - right + 24, at + 4, name, "start"))
    return _drawing("plot", width, height, told, parts, scales=True)


def heat_map(matrix: np.ndarray, *, told: str) -> Markup:
    """Draw an accuracy matrix [T, T] in percent; rows: after which session, columns: whose clips; darker is better.

    Up to 15 sessions the numbers stand in the cells. Beyond 40 sessions every cell is the mean over a block of them.
    """
    blocks, size = in_blocks(matrix)
    count = len(blocks)
    cell = 34.0 if count <= _NUMBERS_UP_TO else max(11.0, 510.0 / count)
    left, top = 44.0, 30.0
    parts = [_text(left, 10, "clips of session", "start"), _text(left - 8, 24, "after", "end")]
    for i in session_ticks(count, most=15 if count <= _NUMBERS_UP_TO else 10):
        parts.append(_text(left + (i + 0.5) * cell, 24, str(i * size), "middle"))
        parts.append(_text(left - 8, top + (i + 0.5) * cell + 4, str(i * size), "end"))
    for t in range(count):
        for i in range(t + 1):
            value = blocks[t, i]
            if math.isnan(value):
                continue
            at = (left + i * cell, top + t * cell)
            gap = 1.0 if count <= _NUMBERS_UP_TO else 0.0
            parts.append(_tag("rect", x=at[0], y=at[1], width=cell - gap, height=cell - gap, cls=f"q q{level(value)}"))
            if count <= _NUMBERS_UP_TO:
                middle, step = at[0] + (cell - gap) / 2, level(value)
                parts.append(_text(middle, at[1] + cell / 2 + 3.5, f"{value:.0f}", "middle", f"n{step}"))
    side = math.ceil(count * cell)
    parts += _scale_of_levels(left, top + side + 14)
    width = max(int(left) + side + 2, int(left) + 16 * LEVELS + 60)
    return _drawing("heat", width, int(top) + side + 44, told, parts)


def _scale_of_levels(x: float, y: float) -> list[str]:
    """The heat map's colours from 0 to 100 %, below it."""
    step = 15.0
    steps = [_tag("rect", x=x + k * step, y=y, width=step, height=9, cls=f"q q{k}") for k in range(LEVELS + 1)]
    end = x + (LEVELS + 1) * step
    return [*steps, _text(x, y + 22, "0 %", "start"), _text(end, y + 22, "100 %", "end")]


def level(value: float) -> int:
    """Return the step of the heat map's scale, 0 to `LEVELS`, that a percentage falls on."""
    return min(LEVELS, max(0, int(value * LEVELS / 100 + 1e-9)))


def in_blocks(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Return an accuracy matrix of at most 40 rows, and how many sessions one row stands for.

    Cells of a block that were not tested are left out of its mean; a block without any is NaN.
    """
    size = math.ceil(len(matrix) / _MOST_CELLS)
    if size == 1:
        return matrix, 1
    count = math.ceil(len(matrix) / size)
    padded = np.full((count * size, count * size), np.nan)
    padded[: len(matrix), : len(matrix)] = matrix
    cells = padded.reshape(count, size, count, size)
    tested = np.maximum((~np.isnan(cells)).sum(axis=(1, 3)), 0)
    total = np.nansum(cells, axis=(1, 3))
    return np.where(tested > 0, total / np.maximum(tested, 1), np.nan), size


def ticks(low: float, high: float) -> list[float]:
    """Return 3 to 7 round numbers from `low` to `high`."""
    raw = (high - low) / 5 or 1.0
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def session_ticks(count: int, *, most: int = 12) -> list[int]:
    """Return the sessions that get a number: all up to `most`, else every 2nd, 5th, 10th, ..."""
    raw = count / most
    step = 1 if raw <= 1 else next(f * 10**k for k in range(12) for f in (1, 2, 5) if f * 10**k >= raw)
    return list(range(0, count, step))


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, (end - start) / ((high - low) or 1.0), start)


@dataclass(frozen=True)
class _Scale:
    low: float
    factor: float
    start: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _apart(ends: list[tuple[float, int, str]], gap: float, top: float, bottom: float) -> list[tuple[float, int, str]]:
    """Move labels at the lines' ends up and down until they are `gap` apart and inside the plot."""
    placed: list[tuple[float, int, str]] = []
    at = top - gap
    for y, number, name in sorted(ends):
        at = max(y, at + gap)
        placed.append((at, number, name))
    over = bottom
    for k in range(len(placed) - 1, -1, -1):
        y, number, name = placed[k]
        placed[k] = (min(y, over), number, name)
        over = placed[k][0] - gap
    return placed


def _marker(x: float, y: float, number: int) -> str:
    """Circle, square, triangle, diamond: lines are told apart without colour."""
    shapes = (
        None,
        ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        ((0, -4), (3.8, 3), (-3.8, 3)),
        ((0, -4.2), (4.2, 0), (0, 4.2), (-4.2, 0)),
    )
    corners = shapes[number % len(shapes)]
    if corners is None:
        return _tag("circle", cx=x, cy=y, r=3.2, cls=f"mark s{number}")
    return _tag("polygon", points=_points([(x + dx, y + dy) for dx, dy in corners]), cls=f"mark s{number}")


# Parts are plain text while a drawing is put together: `Markup` would escape each of thousands of numbers. Everything
# that is no number or name of ours passes `escape`, in `_text` and `_drawing`.


def _drawing(
    kind: str, width: float, height: float, told: str, parts: Iterable[str], *, scales: bool = False
) -> Markup:
    """Return the whole drawing: an image with a name for who listens, hidden where it has none."""
    role = f'role="img" aria-label="{escape(told)}"' if told else 'aria-hidden="true"'
    size = "" if scales else f' width="{_number(width)}" height="{_number(height)}"'
    box = f"0 0 {_number(width)} {_number(height)}"
    return Markup(f'<svg class="{kind}" viewBox="{box}"{size} {role} focusable="false">{"".join(parts)}</svg>')


def _tag(name: str, *, cls: str, **attributes: float | str) -> str:
    inner = "".join(f' {key}="{_number(value)}"' for key, value in attributes.items())
    return f'<{name} class="{cls}"{inner}/>'


def _text(x: float, y: float, text: str, anchor: str, cls: str = "") -> str:
    named = f' class="{cls}"' if cls else ""
    return f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _points(points: Iterable[tuple[float, ...]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float | str) -> str:
    """Two decimals at most: a hundredth of a pixel is enough, and short pages load fast."""
    if isinstance(value, str):
        return value
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
