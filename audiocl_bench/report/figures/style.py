"""How every figure looks and is written: sizes, colours, markers, page layout, label placement, deterministic files.

Nothing is told by colour alone: a series has its own colour, marker and line style, a bar its own hatch. The colours
keep a CIE 1976 distance of 16 or more from each other under simulated protanopia, deuteranopia and tritanopia (Machado
et al. 2009), and a contrast of 3:1 or more with white paper (WCAG 2.1, 1.4.11).
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from audiocl_bench.errors import ConfigError, ResultsError, unknown_name
from audiocl_bench.files import atomic_path

FORMATS = ("png", "svg", "pdf")
"""File formats that a drawing can be written in; beside them it always writes the Parquet table it drew."""

WIDTHS = {"single": 3.3, "double": 7.0}
"""Widths of a one-column and a two-column figure, in inches."""

NARROWEST, WIDEST = 2.5, 14.0
"""Bounds of a width given as a number, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#8000E0", "#602000")
"""Colours of series, in the order they are given out; the first four and black are Okabe and Ito's."""

HEAT = "cividis"
"""Colour map of heat maps: its lightness rises evenly, so it reads in grey and with any colour vision."""

FAINT = "#555555"
GRID = "#D9D9D9"
TEXT, TITLE, TINY = 7.0, 8.0, 6.0  # points

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
_DPI = 300
_EDGE = 0.06  # inches of white around a page
_LEADING = 1.25  # line height in font sizes

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same letters on every machine
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "axes.labelpad": 2.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a class called a$b$ is a name and no formula
    "axes.unicode_minus": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "audiocl",  # ids in an SVG are random without it
    "pdf.fonttype": 42,  # TrueType: conferences refuse Type 3
    "savefig.dpi": _DPI,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the house style inside the block, whatever the user's own matplotlib settings are."""
    with matplotlib.style.context(["default", _RC]), warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the Parquet table carries the names in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# ------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Drawing:
    """A figure with the numbers it shows.

    Attributes:
        kind: "curves", "matrix", ...
        stem: a file name that fits, without suffix.
        figure: the matplotlib figure; it can be changed before it is saved.
        data: the table that was drawn, one row per mark; accuracies in percent, sessions counted from 0.
        alt: one sentence or two that say what is drawn, for readers who cannot see it.
    """

    kind: str
    stem: str
    figure: Figure
    data: pd.DataFrame
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, bytes | str], dict[str, Any]]:
        """Show the figure in a notebook, at half the pixels it has, and what it shows where there are no pictures."""
        picture = io.BytesIO()
        with styled():
            self.figure.savefig(picture, format="png", metadata=self._metadata("png"))
        width, height = (round(float(inches) * _DPI / 2) for inches in self.figure.get_size_inches())
        shown: dict[str, bytes | str] = {"image/png": picture.getvalue(), "text/plain": self.alt}
        return shown, {"image/png": {"width": width, "height": height}}

    def save(self, out: Path, formats: Sequence[str] = FORMATS) -> tuple[Path, ...]:
        """Write the figure in every format, and the table it drew; equal drawings give equal bytes.

        Args:
            out: path of the files without their suffix; `.png`, `.svg`, `.pdf` and `.parquet` are appended.
            formats: of `FORMATS`.

        Returns:
            the written files, the table last.

        Raises:
            UnknownNameError: an unknown format.
            ResultsError: a file cannot be written.
        """
        for name in formats:
            if name not in FORMATS:
                raise unknown_name("format of figures", name, FORMATS)
        written = []
        with styled():
            for name in dict.fromkeys(formats):
                target = out.with_name(f"{out.name}.{name}")
                with atomic_path(target, error=ResultsError) as temporary:
                    self.figure.savefig(temporary, format=name, metadata=self._metadata(name))
                written.append(target)
        target = out.with_name(f"{out.name}.parquet")
        with atomic_path(target, error=ResultsError) as temporary:
            table = pa.Table.from_pandas(self.data, preserve_index=False)
            told = {b"audiocl_figure": self.kind.encode(), b"description": self.alt.encode()}
            pq.write_table(table.replace_schema_metadata(told), temporary, compression="zstd")
        return (*written, target)

    def _metadata(self, name: str) -> dict[str, Any]:
        """Say what is shown; leave out dates and versions, which would make equal figures differ."""
        if name == "png":
            return {"Software": None, "Description": self.alt.encode("latin-1", "replace").decode("latin-1")}
        if name == "svg":
            return {"Date": None, "Creator": "audiocl", "Title": f"audiocl {self.kind}", "Description": self.alt}
        return {"CreationDate": None, "Producer": None, "Creator": "audiocl", "Title": self.alt}


def width_of(given: str | float | None, default: str) -> float:
    """Return a width in inches: `given` is "single", "double", a number of inches, or None for `default`.

    Raises:
        ConfigError: it is neither, or out of bounds.
    """
    given = default if given is None else given
    if given in WIDTHS:
        return WIDTHS[str(given)]
    try:
        inches = float(given)
    except ValueError:
        inches = math.nan
    if not NARROWEST <= inches <= WIDEST:
        raise ConfigError(
            f"the width of a figure is single (3.3 in), double (7 in) or {NARROWEST:g} to {WIDEST:g} inches, "
            f"not '{given}'."
        )
    return inches


# -------------------------------------------------------------------------------------------------------------- series


@dataclass(frozen=True)
class Series:
    """How one series looks: colour, marker and line style."""

    colour: str
    marker: str
    line: Any


def series(number: int) -> Series:
    """Return the look of series `number`, 0..; the first 210 differ, and neighbours differ in everything."""
    return Series(
        COLOURS[number % len(COLOURS)],
        _MARKERS[number % len(_MARKERS)],
        _LINES[number % len(_LINES)],
    )


def legend_line(look: Series, **style: Any) -> Line2D:
    """Return what stands for a series in a legend."""
    shown = {"marker": look.marker, "linestyle": look.line, "color": look.colour, **style}
    return Line2D([], [], **shown)


# ---------------------------------------------------------------------------------------------------------------- page


class Page:
    """A figure under construction: a title and notes above, axes, a legend below that covers no data.

    The axes are drawn first; `finish` then measures title, notes and legend and sets the height, so that nothing
    overlaps whatever the names are.
    """

    def __init__(self, width: float, *, title: str, warning: str = "", notes: Sequence[str] = ()) -> None:
        self.width = width
        self.title, self.warning, self.notes = title, warning, tuple(note for note in notes if note)
        self.figure = Figure(figsize=(width, width), dpi=_DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.legend: Any = None

    def finish(self, body: float, entries: Sequence[tuple[Any, str]] = ()) -> Figure:
        """Set the layout and return the figure.

        Args:
            body: height of the axes with their ticks and labels, in inches.
            entries: handle and text of each entry of the legend.
        """
        title = wrapped(self.title, self.width - 2 * _EDGE, TITLE, weight="bold")
        warning = wrapped(self.warning, self.width - 2 * _EDGE, TEXT, weight="bold")
        notes = [line for note in self.notes for line in wrapped(note, self.width - 2 * _EDGE, TEXT)]
        top = _EDGE + _height(title, TITLE) + _height(warning, TEXT) + 0.04
        bottom = _height(notes, TEXT) + _EDGE + (0.03 if notes else 0.0)
        if entries:
            self._add_legend(entries)
            bottom += self._legend_height() + 0.02
        height = top + body + bottom
        self.figure.set_size_inches(self.width, height)
        rect = (0.0, bottom / height, 1.0, body / height)
        self.figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.03, rect=rect))
        self._write(title, _EDGE, TITLE, weight="bold")
        self._write(warning, _EDGE + _height(title, TITLE), TEXT, weight="bold", color="#A03000")
        self._write(notes, height - _EDGE - _height(notes, TEXT), TEXT, color=FAINT)
        if self.legend is not None:
            self.legend.set_bbox_to_anchor((0.5, (bottom - self._legend_height()) / height), self.figure.transFigure)
        self.figure.draw_without_rendering()  # settles the layout
        return self.figure

    def _write(self, lines: Sequence[str], y: float, size: float, **style: Any) -> None:
        """Write lines of text at `y` inches from the top."""
        if lines:
            x, y = _EDGE / self.width, 1 - y / self.figure.get_figheight()
            self.figure.text(x, y, "\n".join(lines), fontsize=size, va="top", linespacing=_LEADING - 0.05, **style)

    def _add_legend(self, entries: Sequence[tuple[Any, str]]) -> None:
        room = self.width - 2 * _EDGE - 0.45  # beside the handle
        broken = ["\n".join(wrapped(text, room, TEXT)) for _, text in entries]
        longest = max(text_width(line, TEXT) for text in broken for line in text.split("\n"))
        columns = max(1, min(len(entries), int((self.width - 2 * _EDGE) / (longest + 0.45))))
        rows = math.ceil(len(entries) / columns)
        self.legend = self.figure.legend(
            [handle for handle, _ in entries],
            broken,
            loc="lower center",
            ncols=math.ceil(len(entries) / rows),
            frameon=False,
            handlelength=2.6,
            handletextpad=0.5,
            columnspacing=1.2,
            labelspacing=0.3,
            borderpad=0.1,
            borderaxespad=0.0,
        )
        self.legend.set_in_layout(False)

    def _legend_height(self) -> float:
        if self.legend is None:
            return 0.0
        return float(self.legend.get_window_extent(self.canvas.get_renderer()).height / self.figure.dpi)


def _height(lines: Sequence[str], size: float) -> float:
    return len(lines) * size * _LEADING / 72


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of one line of text in inches, measured in the house font."""
    renderer = RendererAgg(1, 1, _DPI)
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = renderer.get_text_width_height_descent(text, font, ismath=False)
    return width / _DPI


def wrapped(text: str, inches: float, size: float, weight: str = "normal") -> list[str]:
    """Break text into lines that fit `inches`; a word that is too long is broken too."""
    if not text:
        return []
    room = max(8, int(len(text) * inches / max(text_width(text, size, weight), 1e-6)))
    while True:
        lines = textwrap.wrap(text, room, break_on_hyphens=False)
        if room <= 8 or all(text_width(line, size, weight) <= inches for line in lines):
            return lines
        room -= 1


def shortened(text: str, inches: float, size: float) -> str:
    """Return the text, with "…" in its middle if it is wider than `inches`: both ends of a name tell most."""
    kept = len(text)
    short = text
    while kept > 4 and text_width(short, size) > inches:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


# ---------------------------------------------------------------------------------------------------------------- axes


def plain_axes(axes: Axes, *, grid: str = "y") -> None:
    """Draw the light grid of the house behind the data."""
    axes.grid(True, axis=grid)  # type: ignore[arg-type]
    axes.tick_params(length=2.5)


def whole_numbers(axis: Any, low: int, high: int, most: int = 10) -> None:
    """Put ticks on all whole numbers if there are at most `most`, else on `low`, `high` and round ones between."""
    if high - low < most:
        ticks = list(range(low, high + 1))
    else:
        scales = [base * 10**power for power in range(8) for base in (1, 2.5, 5) if base * 10**power not in (1, 2.5)]
        step = int(next(scale for scale in scales if (high - low) / scale <= most - 2))
        inner = range(step * math.ceil((low + 1) / step), high, step)
        ticks = [low, *(tick for tick in inner if tick - low > 0.3 * step and high - tick > 0.4 * step), high]
    axis.set_major_locator(FixedLocator([float(tick) for tick in ticks]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def percent_axis(axis: Any, values: Sequence[float] | np.ndarray, *, room: float = 0.06, most: int = 6) -> None:
    """Set an axis of percentages: limits around the finite values, within -1 and 101; ticks on whole numbers.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        values: what is drawn.
        room: free space at either end, as a share of the span.
        most: most steps between ticks.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min()), float(finite.max())
    margin = max(room * (high - low), 1.0, 3.0 - (high - low) / 2)  # equal values are no reason for ticks of 0.1
    set_limits = axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim
    set_limits(max(low - margin, -1.0), min(high + margin, 101.0))
    axis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))


def log_axis(axes: Axes, values: np.ndarray, write: Any, *, time: bool = False) -> np.ndarray:
    """Make x logarithmic and return where the values lie; zeros stand a decade left, as "0".

    Args:
        axes: the axes.
        values: what is drawn.
        write: value -> text of a tick.
        time: the values are seconds, whose round numbers are minutes and hours.
    """
    positive = values[values > 0]
    lowest = float(positive.min()) if len(positive) else 1.0
    highest = float(positive.max()) if len(positive) else 1.0
    zero = 10.0 ** (math.floor(math.log10(lowest)) - 1)
    places = np.where(values > 0, values, zero)
    low = zero if (values <= 0).any() else lowest
    axes.set_xscale("log")
    span = max(math.log10(highest / low), 0.5)
    axes.set_xlim(low / 10 ** (0.14 * span), highest * 10 ** (0.14 * span))
    ticks = _log_ticks(*axes.get_xlim(), time=time)
    if (values <= 0).any():
        ticks = [zero, *(tick for tick in ticks if tick > 3 * zero)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    some_zero = bool((values <= 0).any())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "0" if some_zero and value <= zero else write(value).replace(".0 ", " "))
    )
    return places


_ROUND = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
_ROUND_TIMES = (
    (0.01, 0.1, 1, 10, 60, 600, 3600, 36_000),
    (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 900, 3600, 10_800, 36_000),
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18_000, 36_000),
)


def _log_ticks(low: float, high: float, *, time: bool) -> list[float]:
    """Return two to four round values between the limits, on a scale fine enough that there are three if possible."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    plain = [[factor * 10.0**decade for decade in decades for factor in factors] for factors in _ROUND]
    scales = [*(list(map(float, times)) for times in _ROUND_TIMES), *plain] if time and high < 72_000 else plain
    inside: list[float] = []
    for scale in scales:
        inside = [tick for tick in scale if low <= tick <= high]
        if len(inside) >= 3:
            break
    if not inside:  # the values are nearly equal
        middle = math.sqrt(low * high)
        digits = 1 - math.floor(math.log10(middle))
        inside = [round(middle, digits)]
    return inside[:: math.ceil(len(inside) / 4)]


# -------------------------------------------------------------------------------------------------------------- labels

_DIRECTIONS = tuple(
    (math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in (0, 180, 90, 270, 45, 135, 315, 225)
)
_DISTANCES = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0, 60.0)  # points


def place_labels(
    axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], colours: Sequence[str]
) -> None:
    """Write a label at each point so that no label covers a point, another label or the edge; far ones get a line.

    Greedy: the most crowded point chooses first among eight directions at growing distances. Call when the layout is
    settled (after `Page.finish`): places are measured in pixels.
    """
    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    pixels = figure.dpi / 72
    places = axes.transData.transform(np.asarray(points, dtype=float))
    inside = axes.get_window_extent(renderer).padded(-2 * pixels)
    taken = [Bbox.from_bounds(x - 3 * pixels, y - 3 * pixels, 6 * pixels, 6 * pixels) for x, y in places]
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    order = sorted(range(len(places)), key=lambda i: (round(float(np.sort(gaps[i])[:2].sum()), 3), i))
    for i in order:
        size = (text_width(labels[i], TINY) * figure.dpi, TINY * 1.1 * pixels)
        box, far = _free_place(places[i], size, taken, inside, pixels)
        taken.append(box)
        away = [_distance(box, place) for place in places]
        far = far or any(gap < away[i] + 2 * pixels for j, gap in enumerate(away) if j != i)  # whose label is it?
        x, y = axes.transData.inverted().transform((box.x0, (box.y0 + box.y1) / 2))
        axes.text(x, y, labels[i], fontsize=TINY, va="center", ha="left", gid=f"label-{i}")
        if far:
            nearest = (np.clip(places[i][0], box.x0, box.x1), np.clip(places[i][1], box.y0, box.y1))
            ends = axes.transData.inverted().transform([tuple(places[i]), nearest])
            axes.plot(ends[:, 0], ends[:, 1], color=colours[i], linewidth=0.5, zorder=4)


def _free_place(
    point: np.ndarray, size: tuple[float, float], taken: Sequence[Bbox], inside: Bbox, pixels: float
) -> tuple[Bbox, bool]:
    """Return the first box of `size` near the point that meets nothing, and whether it needs a line to its point."""
    width, height = size
    best: tuple[float, Bbox, bool] | None = None
    for distance in _DISTANCES:
        for dx, dy in _DIRECTIONS:
            x = point[0] + dx * distance * pixels - (0 if dx > 0.5 else width if dx < -0.5 else width / 2)
            y = point[1] + dy * distance * pixels - (0 if dy > 0.5 else height if dy < -0.5 else height / 2)
            box = Bbox.from_bounds(x, y, width, height)
            outside = max(inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1, 0.0)
            cover = sum(_overlap(box, other) for other in taken) + 100 * outside
            if cover == 0:
                return box, distance > 8
            if best is None or cover < best[0]:
                best = (cover, box, distance > 8)
    assert best is not None
    return best[1], best[2]


def _distance(box: Bbox, point: np.ndarray) -> float:
    """Return how far a point lies from a box, in pixels."""
    dx = max(box.x0 - point[0], point[0] - box.x1, 0.0)
    dy = max(box.y0 - point[1], point[1] - box.y1, 0.0)
    return math.hypot(dx, dy)


def _overlap(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0
