"""Instruments played note by note from a sampled soundfont with fluidsynth: program x pitch x articulation.

fluidsynth is taken from where it is installed, else from Debian's packages, unpacked into the cache and never
installed. Each program of General MIDI is one MIDI file, rendered without chorus and reverberation and cut into notes,
so that equal programs give equal bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from audiocl_bench import seeding
from audiocl_bench.errors import AudioclError, CorpusError
from audiocl_bench.files import sha256_json
from audiocl_bench.pretrain.sources import SOUNDFONT, Package, Recording, Say, download, find_deb, run_tool

PROGRAMS = 128
"""Melodic programs of General MIDI."""

DRUMS = range(35, 82)
"""Keys of its percussion channel."""

PITCHES = (36, 43, 50, 55, 60, 64, 69, 76, 84)
"""MIDI numbers of the notes that each program plays, C2 to C6."""

_RATE = 32_000  # of the rendering; later resampled to 16 kHz, so that nothing folds back
_SLOT = 3.0  # seconds from one note to the next: the ring of a piano or bell dies away
_TICKS = 480  # per second: 480 per quarter note at 60 quarter notes a minute
_DRUM_CHANNEL, _VERSION = 9, 1


@dataclass(frozen=True)
class Note:
    """One event of a rendering.

    Attributes:
        keys: MIDI numbers sounded together.
        velocity: 1..127.
        seconds: how long the keys are held.
    """

    keys: tuple[int, ...]
    velocity: int
    seconds: float

    @property
    def name(self) -> str:
        """Short name for files: keys, velocity, length."""
        return f"{'-'.join(map(str, self.keys))}_v{self.velocity}_{round(1000 * self.seconds)}ms"


@dataclass(frozen=True)
class Player:
    """A fluidsynth that runs here.

    Attributes:
        command: path of the program.
        libraries: value for LD_LIBRARY_PATH; empty where it is installed.
        version: what it says of itself.
    """

    command: str
    libraries: str
    version: str

    @property
    def env(self) -> dict[str, str]:
        """Environment to start it in."""
        return {**os.environ, "LD_LIBRARY_PATH": self.libraries} if self.libraries else dict(os.environ)


def find_player(cache: Path, say: Say) -> Player | None:
    """Return a fluidsynth that runs: installed, or unpacked below `cache` with the libraries that this machine lacks.

    None, with a line told, if there is no way.
    """
    installed = shutil.which("fluidsynth")
    try:
        if installed:
            return _tried(installed, "")
        folder = _unpacked(cache, say)
        libraries = sorted({str(path.parent) for path in folder.rglob("*.so*")})
        return _tried(str(folder / "usr/bin/fluidsynth"), ":".join(libraries))
    except AudioclError as cause:
        say(f"instruments are left out: {cause}")
        return None


def _tried(command: str, libraries: str) -> Player:
    player = Player(command, libraries, "")
    told = run_tool([command, "--version"], cwd=Path.cwd(), failed="fluidsynth does not run", env=player.env)
    version = re.search(r"version (\S+)", told)
    return Player(command, libraries, version.group(1) if version else "unknown")


def _unpacked(cache: Path, say: Say) -> Path:
    """Return the folder with fluidsynth and the libraries that apt would install with it."""
    folder = cache / "unpacked" / "fluidsynth"
    if folder.is_dir():
        return folder
    plan = run_tool(
        ["apt-get", "-s", "--no-install-recommends", "install", "fluidsynth"],
        cwd=cache,
        failed="fluidsynth cannot be fetched",
    )
    names = [name for name in re.findall(r"^Inst (\S+)", plan, flags=re.MULTILINE) if name != SOUNDFONT]
    part = folder.with_name(".fluidsynth.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name in names:
            deb = find_deb(name, cache) or download(name, cache, say)
            run_tool(["dpkg-deb", "-x", str(deb), str(part)], cwd=cache, failed=f"{deb} cannot be unpacked (delete it)")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


# ---------------------------------------------------------------------------------------------------------------- notes


def notes_of(program: int) -> list[Note]:
    """Return what a program plays: every pitch short and soft, and long and loud; then chords, drawn once for ever."""
    single = [note for key in PITCHES for note in (Note((key,), 60, 0.15), Note((key,), 110, 1.2))]
    rng = seeding.numpy_generator(0, "pretrain", "chords", program)
    chords = []
    for _ in range(3):
        root = int(rng.integers(45, 66))
        shape = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 5, 7))[int(rng.integers(4))]
        chords.append(
            Note(tuple(root + step for step in shape), int(rng.integers(60, 115)), float(rng.uniform(0.3, 1.5)))
        )
    return single + chords


def drum_notes() -> list[Note]:
    """Return the hits of the percussion channel: every key soft and loud."""
    return [Note((key,), velocity, 0.3) for key in DRUMS for velocity in (60, 115)]


def midi(notes: Iterable[Note], program: int, channel: int) -> bytes:
    """Return a standard MIDI file (format 0, 480 ticks a second) that plays a note every 3 seconds."""
    events: list[tuple[int, int, bytes]] = [(0, 0, bytes([0xC0 | channel, program]))]
    total = 0
    for index, note in enumerate(notes):
        start = round(index * _SLOT * _TICKS)
        stop = start + max(1, round(note.seconds * _TICKS))
        total = round((index + 1) * _SLOT * _TICKS)
        for key in note.keys:
            events.append((start, 2, bytes([0x90 | channel, key, note.velocity])))
            events.append((stop, 1, bytes([0x80 | channel, key, 0])))
    events.sort(key=lambda event: event[:2])
    track, now = bytearray(b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big")), 0
    for at, _, message in events:
        track += _variable(at - now) + message
        now = at
    track += _variable(total - now) + b"\xff\x2f\x00"
    return struct.pack(">4sIHHH", b"MThd", 6, 0, 1, _TICKS) + struct.pack(">4sI", b"MTrk", len(track)) + bytes(track)


def _variable(value: int) -> bytes:
    """Return a MIDI quantity: seven bits a byte, the high bit set on all but the last."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(0x80 | value & 0x7F)
    return bytes(reversed(out))


# ------------------------------------------------------------------------------------------------------------ rendering


def render(package: Package, player: Player, cache: Path, say: Say) -> list[Recording]:
    """Play the soundfont and return its notes as recordings, sorted by key; rendered programs are kept below `cache`.

    Raises:
        CorpusError: the package holds no soundfont, or fluidsynth fails.
    """
    fonts = sorted(package.folder.rglob("*.sf2"))
    if not fonts:
        raise CorpusError(f"{package.file} holds no soundfont (*.sf2): delete it and fetch it again.")
    mark = sha256_json({"font": package.sha256, "fluidsynth": player.version, "notes": _VERSION})[:12]
    place = cache / "unpacked" / f"instruments-{mark}"
    jobs = [(f"program{program:03d}", program, 0, notes_of(program)) for program in range(PROGRAMS)]
    jobs.append(("drums", 0, _DRUM_CHANNEL, drum_notes()))
    found = []
    for name, program, channel, notes in jobs:
        folder = place / name
        if not folder.is_dir():
            if program == 0:
                say(f"playing {fonts[0].name}")
            _render(player, fonts[0], folder, midi(notes, program, channel), notes)
        for path in sorted(folder.glob("*.wav")):
            key = f"{SOUNDFONT}:/{name}/{path.name}"
            found.append(Recording(key, path, SOUNDFONT, "instrument", f"{SOUNDFONT}:{name}"))
    return sorted(found, key=lambda recording: recording.key)


def _render(player: Player, font: Path, folder: Path, song: bytes, notes: list[Note]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="fluidsynth-") as name:
            score, sound = Path(name) / "song.mid", Path(name) / "song.wav"
            score.write_bytes(song)
            options = ["-n", "-i", "-q", "-R", "0", "-C", "0", "-g", "0.6", "-r", str(_RATE), "-T", "wav", "-O", "s16"]
            command = [player.command, *options, "-F", str(sound), str(font), str(score)]
            run_tool(command, cwd=Path(name), failed="fluidsynth cannot play", env=player.env)
            samples, rate = soundfile.read(sound, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        size = round(_SLOT * rate)
        for index, note in enumerate(notes):
            piece = mono[index * size : (index + 1) * size]
            # A few programs have no sound at some keys; an empty file would only be dropped later.
            if len(piece) and float(np.abs(piece).max()) > 1e-3:
                soundfile.write(part / f"{index:03d}_{note.name}.wav", piece, rate, subtype="PCM_16")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
