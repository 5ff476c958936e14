"""Examples to hear and see: a few clips of each class as WAV files, and one contact sheet of their spectrograms.

    result = listen(clips, Path("heard"), title="ESC-50, esc50, paper split", seconds=5.12)
    result.sheet        # heard/contact-sheet.png: a row per class, a column per clip
    result.clips        # heard/<class>/<clip>.wav

What is drawn is what an encoder is given: the Kaldi log-mel (128 bins) of a clip's start, before padding and scaling.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from audiocl_bench import assign, audio
from audiocl_bench.errors import ConfigError, CorpusError, ResultsError
from audiocl_bench.files import atomic_path, sha256_text
from audiocl_bench.seeding import numpy_generator

SHEET = "contact-sheet.png"
"""File name of the contact sheet in the output folder."""

MAX_CLASSES = 50
"""Most rows of a sheet: beyond it the picture is too tall to be looked at."""

MAX_PER_CLASS = 8
"""Most columns of a sheet."""

_COLUMNS = ("clip_id", "path", "label", "part")
_MELS = 128
_SPAN_DB = 80.0  # what lies further below the top of the scale is drawn as silence
_TOP = 99.9  # percentile at the top of the scale: one click of a single clip would darken all the others
_TICKS_HZ = (100, 500, 1_000, 2_000, 4_000)
_COLOURS = "magma"  # its lightness rises evenly, so it reads in grey and with any colour vision
_NO_SOUND = "#e4e4e4"  # where a clip has ended: told from silence, which is black
_FAINT = "#555555"
_LONGEST_NAME = 100  # characters of a file name, below every file system's limit even at two bytes each

# Inches. The page grows with rows and columns; its parts keep their size.
_DPI = 130
_PANEL_WIDTH, _PANEL_HEIGHT = 3.1, 0.95
_GAP_X, _GAP_Y = 0.22, 0.34
_MARGIN, _TICK_WIDTH, _BOTTOM, _LEAST_WIDTH = 0.2, 0.42, 0.45, 5.2
_TITLE_LINE, _TEXT_LINE, _BAR = 0.21, 0.16, 0.42
_TITLE_SIZE, _NAME_SIZE, _TEXT_SIZE, _SMALL_SIZE = 11.0, 9.0, 7.5, 6.5  # points
_NAME_CHARACTERS = 21  # of a class name on one line
_CHARACTER = 0.0083  # width of an average character of the sans font, in inches per point of its size


@dataclass(frozen=True)
class ListenResult:
    """What was written.

    Attributes:
        sheet: the contact sheet, PNG.
        clips: the WAV files, class by class in the order of the sheet.
    """

    sheet: Path
    clips: tuple[Path, ...]


@dataclass(frozen=True)
class _Panel:
    """One clip of the sheet.

    Attributes:
        clip_id: its id.
        part: "train" or "test".
        wave: float32 [N] at 16 kHz, the whole clip.
        decibel: float32 [frames, 128], the part that is drawn.
    """

    clip_id: str
    part: str
    wave: np.ndarray
    decibel: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.wave) / audio.SAMPLE_RATE


@dataclass(frozen=True)
class _Row:
    """One class of the sheet; `session` is None where the table has none."""

    label: str
    session: int | None
    panels: tuple[_Panel, ...]


def listen(
    clips: pd.DataFrame,
    out: Path,
    *,
    title: str,
    per_class: int = 2,
    classes: int = 20,
    seed: int = 0,
    seconds: float,
) -> ListenResult:
    """Write example clips as WAV (16 kHz, mono, 16 bit) and one contact sheet of their spectrograms (PNG).

    Classes are taken evenly over the order of arrival, the first and the last among them; a class's clips are drawn
    by `seed`, for each class on its own, so that more classes do not change the clips of one. All clips are decoded
    before anything is written. Equal arguments give equal bytes; files of an earlier call in `out` stay.

    Args:
        clips: columns clip_id, path, label, part ("train" | "test") and, if known, session (from 0). Classes arrive by
            session and, within one (or without that column), in the order in which they first appear in the table.
        out: folder to write to: `contact-sheet.png` and `<class>/<clip>.wav`.
        title: heading of the sheet: corpus, benchmark, and for a miniature that it is one.
        per_class: most clips per class, 1 to 8; a class with fewer shows all it has.
        classes: most classes, 1 to 50; the sheet says how many there are.
        seed: of the draw.
        seconds: length of the benchmark's input. The sheet shows that much of a clip, the WAV file the whole clip.

    Raises:
        ConfigError: `per_class`, `classes` or `seconds` is out of range.
        CorpusError: there are no clips, or the table lacks a column.
        AudioError: a chosen clip cannot be decoded; the message names the file.
        ResultsError: `out` cannot be written.
    """
    _check(clips, per_class, classes, seconds)
    clips = clips.assign(label=clips["label"].astype(str))
    arrival = _arrival(clips)
    chosen = [arrival[place] for place in _evenly(len(arrival), classes)]
    rows = []
    for label in chosen:
        of_class = clips[clips["label"] == label]
        session = int(of_class["session"].iloc[0]) if "session" in clips else None
        drawn = _draw(of_class, per_class, seed, label)
        rows.append(_Row(label, session, tuple(_panel(row, seconds) for row in drawn.itertuples(index=False))))
    subtitle = _subtitle(rows, len(arrival), per_class, seed)
    figure = _sheet(rows, title, subtitle, seconds)
    written = _write_clips(rows, out)
    with atomic_path(out / SHEET, error=ResultsError) as temporary:
        _write_png(figure, temporary)
    return ListenResult(out / SHEET, written)


# --------------------------------------------------------------------------------------------------------------- choice


def _check(clips: pd.DataFrame, per_class: int, classes: int, seconds: float) -> None:
    for name, value, most in (("per_class", per_class, MAX_PER_CLASS), ("classes", classes, MAX_CLASSES)):
        if not 1 <= value <= most:
            raise ConfigError(f"listen: {name} lies between 1 and {most}, not {value}.")
    if not (math.isfinite(seconds) and seconds * audio.SAMPLE_RATE >= audio.FRAME_SAMPLES):
        raise ConfigError(f"listen: seconds is at least 0.025 (one frame), not {seconds}.")
    if absent := [column for column in _COLUMNS if column not in clips.columns]:
        raise CorpusError(f"listen: the table of clips has no column '{absent[0]}': give {', '.join(_COLUMNS)}.")
    if clips.empty:
        raise CorpusError("listen: the table of clips is empty: give at least one clip.")


def _arrival(clips: pd.DataFrame) -> list[str]:
    """Return the classes in the order of arrival."""
    first = clips.drop_duplicates("label")
    if "session" in clips:
        first = first.sort_values("session", kind="stable")
    return first["label"].tolist()


def _evenly(count: int, most: int) -> list[int]:
    """Return at most `most` places of 0..count-1: first, last, and equal steps between them (rounded half up)."""
    if most >= count:
        return list(range(count))
    if most == 1:
        return [0]
    return [(2 * i * (count - 1) + most - 1) // (2 * (most - 1)) for i in range(most)]


def _draw(of_class: pd.DataFrame, most: int, seed: int, label: str) -> pd.DataFrame:
    """Return at most `most` clips at random; neither other classes nor the order of the rows change the draw."""
    sorted_clips = of_class.sort_values("clip_id", kind="stable")
    places = assign.shuffled(range(len(sorted_clips)), numpy_generator(seed, "listen", label))[:most]
    return sorted_clips.iloc[places]


def _panel(row: Any, seconds: float) -> _Panel:
    wave = audio.load(Path(row.path))
    frames = max(1, round(seconds * audio.SAMPLE_RATE / audio.HOP_SAMPLES))
    mel = audio.FrontEnd("kaldi", _MELS, frames).extract(wave)
    decibel = mel.numpy() * np.float32(10 / math.log(10))  # from the natural logarithm of a power
    return _Panel(str(row.clip_id), str(row.part), wave.numpy(), decibel)


def _subtitle(rows: Sequence[_Row], num_classes: int, per_class: int, seed: int) -> str:
    if len(rows) < num_classes:
        shown = f"{len(rows)} of {num_classes} classes, evenly over the order of arrival"
    else:
        shown = f"all {num_classes} classes, in the order of arrival" if num_classes > 1 else "the only class"
    fewer = "" if all(len(row.panels) == per_class for row in rows) else "up to "
    return f"{shown}; {fewer}{per_class} clip{'s' if per_class > 1 else ''} each, drawn with seed {seed}."


# ----------------------------------------------------------------------------------------------------------------- WAV


def _write_clips(rows: Sequence[_Row], out: Path) -> tuple[Path, ...]:
    folders = safe_names(row.label for row in rows)
    written = []
    for row in rows:
        names = safe_names(panel.clip_id for panel in row.panels)
        for panel in row.panels:
            target = out / folders[row.label] / f"{names[panel.clip_id]}.wav"
            # Rounded here and not by libsndfile, so that a 16-bit recording at 16 kHz comes out as it went in.
            samples = np.clip(np.rint(panel.wave * 32768.0), -32768, 32767).astype(np.int16)
            with atomic_path(target, error=ResultsError) as temporary:
                soundfile.write(temporary, samples, audio.SAMPLE_RATE, format="WAV", subtype="PCM_16")
            written.append(target)
    return tuple(written)


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Return a file name for each name: letters, digits, "_", "-" and "." only, and never the same for two names.

    Names that would fall together (also where a disk ignores letter case), and those that are too long, end in a hash.
    """
    every = sorted(set(names))
    plain = {name: _safe(name) for name in every}
    folded = [safe.casefold() for safe in plain.values()]
    return {
        name: f"{safe[:_LONGEST_NAME]}-{sha256_text(name)[:8]}"
        if folded.count(safe.casefold()) > 1 or len(safe) > _LONGEST_NAME
        else safe
        for name, safe in plain.items()
    }


def _safe(name: str) -> str:
    # No leading dot or dash: neither a hidden file nor something that a command takes for an option.
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).strip("_").lstrip(".-") or "_"


# ---------------------------------------------------------------------------------------------------------------- sheet


def mel_position(hertz: float) -> float:
    """Return where a frequency lies on the mel axis of `audio.kaldi_fbank`: bin i reaches from i to i + 1."""

    def mel(value: float) -> float:
        return 1127.0 * math.log(1.0 + value / 700.0)

    low, high = mel(20.0), mel(audio.SAMPLE_RATE / 2)
    return (mel(hertz) - low) / ((high - low) / (_MELS + 1)) - 0.5


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a sheet lie, in inches from its top left corner."""

    rows: int
    columns: int
    name_width: float
    title: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def left(self) -> float:
        return _MARGIN + self.name_width + 0.1 + _TICK_WIDTH

    @property
    def header(self) -> float:
        return 0.15 + len(self.title) * _TITLE_LINE + len(self.notes) * _TEXT_LINE + _BAR

    @property
    def width(self) -> float:
        return max(_LEAST_WIDTH, self.left + self.columns * (_PANEL_WIDTH + _GAP_X) - _GAP_X + _MARGIN)

    @property
    def height(self) -> float:
        return self.header + self.rows * (_PANEL_HEIGHT + _GAP_Y) + _BOTTOM

    def x(self, column: int) -> float:
        return self.left + column * (_PANEL_WIDTH + _GAP_X)

    def y(self, row: int) -> float:
        return self.header + row * (_PANEL_HEIGHT + _GAP_Y) + 0.75 * _GAP_Y


def _layout(rows: Sequence[_Row], title: str, notes: str) -> _Layout:
    lines = [line for row in rows for line in _name_lines(row.label)]
    longest = max(_text_width(line, 1.15 * _NAME_SIZE) for line in lines)  # bold is wider
    name_width = max(longest, _text_width("session 000", _SMALL_SIZE))
    plain = _Layout(len(rows), max(len(row.panels) for row in rows), name_width, (), ())
    room = plain.width - 2 * _MARGIN
    return replace(plain, title=_wrapped(title, room, 1.15 * _TITLE_SIZE), notes=_wrapped(notes, room, _TEXT_SIZE))


def _text_width(text: str, size: float) -> float:
    return len(text) * size * _CHARACTER


def _sheet(rows: Sequence[_Row], title: str, subtitle: str, seconds: float) -> Figure:
    panels = [panel for row in rows for panel in row.panels]
    shown = min(seconds, max(panel.seconds for panel in panels))
    cut = sum(panel.seconds > seconds + 0.01 for panel in panels)
    subtitle += f" Input length {seconds:g} s" + (f" ({cut} of {len(panels)} clips are longer)." if cut else ".")
    layout = _layout(rows, title, subtitle)
    top = float(np.percentile(np.concatenate([panel.decibel.ravel() for panel in panels]), _TOP))
    scale = Normalize(top - _SPAN_DB, top)
    with matplotlib.style.context("default"):  # whatever the user's own settings are
        figure = Figure(figsize=(layout.width, layout.height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        page = _Page(figure, layout.width, layout.height)
        page.text(_MARGIN, 0.15, "\n".join(layout.title), size=_TITLE_SIZE, weight="bold")
        y = 0.15 + len(layout.title) * _TITLE_LINE
        page.text(_MARGIN, y, "\n".join(layout.notes), size=_TEXT_SIZE, color=_FAINT)
        _colour_bar(page, layout.header - _BAR, scale)
        for number, row in enumerate(rows):
            _draw_name(page, layout, number, row)
            for column, panel in enumerate(row.panels):
                _draw_panel(page, layout, number, column, panel, scale, shown)
    return figure


class _Page:
    """A figure addressed in inches from its top left corner."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        # parse_math off: a name with two dollar signs is a name, not a formula.
        style = {"va": "top", "ha": "left", "parse_math": False, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)


def _draw_name(page: _Page, layout: _Layout, number: int, row: _Row) -> None:
    lines = _name_lines(row.label)
    right, middle = _MARGIN + layout.name_width, layout.y(number) + _PANEL_HEIGHT / 2
    if row.session is not None:
        middle -= 0.07
        page.text(
            right, middle + 0.08 * len(lines), f"session {row.session}", size=_SMALL_SIZE, ha="right", color=_FAINT
        )
    page.text(right, middle, "\n".join(lines), size=_NAME_SIZE, ha="right", va="center", weight="bold")


def _draw_panel(
    page: _Page, layout: _Layout, number: int, column: int, panel: _Panel, scale: Normalize, seconds: float
) -> None:
    x, y = layout.x(column), layout.y(number)
    facts = f"  {panel.part}, {panel.seconds:.2f} s"
    room = int(_PANEL_WIDTH / (_SMALL_SIZE * _CHARACTER)) - len(facts)
    page.text(x, y - 0.03, _middle_cut(panel.clip_id, room) + facts, size=_SMALL_SIZE, va="bottom", color=_FAINT)
    axes = page.axes(x, y, _PANEL_WIDTH, _PANEL_HEIGHT)
    _spectrogram(axes, panel, scale, seconds)
    axes.tick_params(labelleft=column == 0)
    if column == 0:
        axes.set_ylabel("Hz", fontsize=_SMALL_SIZE, labelpad=1)
    if number == layout.rows - 1:
        axes.set_xlabel("seconds", fontsize=_SMALL_SIZE, labelpad=1)


def _spectrogram(axes: Any, panel: _Panel, scale: Normalize, seconds: float) -> None:
    hop, half = audio.HOP_SAMPLES / audio.SAMPLE_RATE, audio.FRAME_SAMPLES / audio.SAMPLE_RATE / 2
    start = half - hop / 2  # a frame is drawn around its middle
    axes.set_facecolor(_NO_SOUND)
    axes.imshow(
        panel.decibel.T,
        origin="lower",
        aspect="auto",
        cmap=_COLOURS,
        norm=scale,
        extent=(start, start + hop * len(panel.decibel), 0, _MELS),
    )
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, _MELS)
    axes.set_yticks(
        [mel_position(hertz) for hertz in _TICKS_HZ], [_hertz(hertz) for hertz in _TICKS_HZ], parse_math=False
    )
    axes.tick_params(labelsize=6, length=2, width=0.5, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def _hertz(value: int) -> str:
    return f"{value // 1000}k" if value >= 1000 else str(value)


def _colour_bar(page: _Page, y: float, scale: Normalize) -> None:
    axes = page.axes(_MARGIN, y + 0.06, 1.7, 0.1)
    top = float(scale.vmax or 0.0)
    steps = np.linspace(top - _SPAN_DB, top, 256)
    axes.imshow(steps[None], aspect="auto", cmap=_COLOURS, norm=scale, extent=(-_SPAN_DB, 0.0, 0.0, 1.0))
    axes.set_yticks([])
    labels = axes.set_xticks([-80, -60, -40, -20, 0], ["≤ -80", "-60", "-40", "-20", "≥ 0 dB"])
    axes.tick_params(labelsize=6, length=2, width=0.5, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    labels[0].label1.set_horizontalalignment("left")
    told = "log-mel energy; one cell in 1,000 of this sheet exceeds 0 dB\nlight grey: the clip has ended"
    page.text(_MARGIN + 2.0, y + 0.05, told, size=_SMALL_SIZE, color=_FAINT)


def _wrapped(text: str, inches: float, size: float) -> tuple[str, ...]:
    return tuple(textwrap.wrap(text, int(inches / (size * _CHARACTER)))) or ("",)


def _name_lines(name: str) -> list[str]:
    """Break a class name after blanks, "_", "-" and "/" into at most three lines."""
    lines = [""]
    for word in re.findall(r"[^ _/-]+[ _/-]?|[ _/-]", name):
        if lines[-1] and len(lines[-1]) + len(word) > _NAME_CHARACTERS:
            lines.append("")
        lines[-1] += word
    lines = [_middle_cut(line.strip(), _NAME_CHARACTERS) for line in lines]
    return lines if len(lines) <= 3 else [*lines[:2], _middle_cut("…" + lines[-1], _NAME_CHARACTERS)]


def _middle_cut(text: str, room: int) -> str:
    """Return `text`, with "…" in its middle if it has more than `room` characters: both ends of an id tell most."""
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def _write_png(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(), matplotlib.style.context("default"):
        # A script that the font lacks is drawn as boxes; the WAV folders carry the names in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Without this the file names the version of matplotlib, and two installations write different bytes.
        figure.savefig(path, format="png", metadata={"Software": None})
