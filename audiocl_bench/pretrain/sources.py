"""Freely licensed recordings to pre-train on: Debian packages, fetched and unpacked without installing anything.

Every package lies in Debian's main archive, so its licences meet the Debian Free Software Guidelines. What a package
holds beside audio is never touched. No package carries a clip of an evaluation stream knowingly, Arabic recordings are
left out because two example streams are Arabic, and recordings that equal a held-out file sample by sample are dropped
(`held_out_digests`).

Sound effects and clips of ESC-50 can go back to the same upload on Freesound. Two checks were made, and what they
found is left out by `drop`: of some 350 uploads that the packages' own files name, one (4211) is behind a clip of
ESC-50; and of all sounds and music, compared by spectral landmarks with the 731 clips of fold 4 and of ESC-10, three
are that upload and two resemble another clip. Against other clips of ESC-50 nothing is proven.

    <cache>/<package>_<version>_<architecture>.deb
    <cache>/unpacked/<name of the .deb>/...        its audio, also out of archives inside it, and its copyright file
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from filelock import FileLock
from numpy.typing import NDArray

from audiocl_bench import audio
from audiocl_bench.errors import AudioError, CorpusError, unknown_name
from audiocl_bench.files import explain_os_error, home, sha256_file

Kind = Literal["speech", "sound", "music", "instrument"]
Say = Callable[[str], None]

AUDIO_SUFFIXES = frozenset({".wav", ".ogg", ".oga", ".opus", ".flac", ".mp3", ".aif", ".aiff", ".au"})
"""Files that are taken for recordings (all that libsndfile decodes)."""

_ZIP_SUFFIXES = frozenset({".pk3", ".wz", ".zip"})
_PACKED_SUFFIXES = frozenset({".rcc", ".ocg", ".ocd", ".ocf"})  # Qt resources; groups of OpenClonk
_KEPT_SUFFIXES = AUDIO_SUFFIXES | {".sf2"}
_OPENED = ".opened"  # suffix of the folder that takes an archive's recordings
_ARABIC = r"(^|[/_])ar([/_.]|$)"  # a folder `ar`, or `_ar` at the end of a name
_UNPACKED_LIMIT = 4 << 30  # bytes that one archive inside a package may unpack to
_APT_TIMEOUT = 3600.0


@dataclass(frozen=True)
class Source:
    """One Debian package of the catalogue.

    Attributes:
        package: its name.
        version: the version that the shipped recipe was made with; others are taken too, and recorded.
        kind: what most of its recordings are.
        licence: in short, as the package's copyright file has it for the recordings.
        holds: what is recorded there.
        kinds: (regular expression on the path inside it, kind): exceptions from `kind`; the first match counts.
        drop: regular expression on the path of what is left out.
        group: regular expression whose first group names the speaker (or the like) of a path; without a match every
            file is a group of its own.
        default: fetched unless the recipe names its packages.
    """

    package: str
    version: str
    kind: Kind
    licence: str
    holds: str
    kinds: tuple[tuple[str, Kind], ...] = ()
    drop: str | None = None
    group: str | None = None
    default: bool = True

    def kind_of(self, path: str) -> Kind:
        """Return the kind of the recording at a path inside the package."""
        return next((kind for pattern, kind in self.kinds if re.search(pattern, path)), self.kind)

    def group_of(self, path: str) -> str:
        """Return the group (speaker, language, drum kit) of the recording at a path inside the package."""
        match = re.search(self.group, path) if self.group else None
        return f"{self.package}:{match.group(1) if match else path}"

    def takes(self, path: str) -> bool:
        """Tell whether the recording at a path inside the package is used: neither Arabic nor left out."""
        if re.search(_ARABIC, path.lower()):
            return False
        return not (self.drop and re.search(self.drop, path))


def _asterisk(language: str, name: str) -> Source:
    return Source(
        f"asterisk-core-sounds-{language}-wav",
        "1.6.1-1",
        "speech",
        "CC-BY-SA-3.0, CC-BY-3.0",
        f"telephone prompts in {name}, one speaker, 8 kHz",
        drop=r"/(silence|beep|vm-rec-|ascending|descending|tt-|.*-?beep)[^/]*$|/silence/",
        group=r"/sounds/([^/]+)/",
    )


CATALOGUE: tuple[Source, ...] = (
    Source(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "speech",
        "GPL-2",
        "names of things spoken in many languages, and what they sound like (animals, vehicles, instruments)",
        kinds=((r"_desc\.|_[a-z]{2}(_[A-Z]{2}|@\w+)?\.\w+$|_(filled|outline)\.|/math/", "speech"), (r".", "sound")),
        group=r"_([a-z]{2}(?:_[A-Z]{2}|@\w+)?)\.(?:ogg|wav)$",
    ),
    Source(
        "klettres-data",
        "4:22.12.3-1",
        "speech",
        "GPL-2+, LGPL-2, GFDL-NIV-1.2+, CC0-1.0",
        "letters and syllables in some twenty languages",
        group=r"/klettres/([^/]+)/",
    ),
    Source(
        "gcin-voice",
        "0~20170223-3",
        "speech",
        "GPL-3 or LGPL-3, CC-BY-3.0",
        "Mandarin syllables by two speakers",
        group=r"/([^/]+)\.ogg$",
    ),
    Source(
        "ktuberling-data",
        "4:22.12.3-1",
        "speech",
        "GPL-2+, GFDL-1.2+, CC0-1.0, CC-BY",
        "names of things spoken in some thirty languages",
        group=r"/sounds/([^/]+)/",
    ),
    *(
        _asterisk(language, name)
        for language, name in (
            ("en", "English"),
            ("es", "Spanish"),
            ("fr", "French"),
            ("it", "Italian"),
            ("ru", "Russian"),
        )
    ),
    Source(
        "asterisk-prompt-it-menardi-wav",
        "1:1.4.22+mm20110907-3.1",
        "speech",
        "CC-BY-SA-3.0",
        "telephone prompts in Italian, one speaker",
        drop=r"beep|silence",
        group=r"(sounds)/",
    ),
    Source(
        "fillets-ng-data-cs",
        "1.0.1-1.1",
        "speech",
        "GPL-2+",
        "lines of dialogue in Czech by actors",
        group=r"-([mv])-[^/]*$",
    ),
    Source(
        "fillets-ng-data-nl",
        "1.0.1-1.1",
        "speech",
        "GPL-2+",
        "lines of dialogue in Dutch by actors",
        group=r"-([mv])-[^/]*$",
    ),
    Source(
        "scratch",
        "1.4.0.6~dfsg1-6.1",
        "sound",
        "CC-BY-SA-3.0",
        "animals, people (cough, sneeze, baby), doors, water, vehicles, instruments, loops",
        kinds=((r"/Music ?Loops/", "music"), (r"/Vocals/(Come|Doy|Got|Hey|Join|Sing-)", "music")),
    ),
    Source(
        "megaglest-data",
        "3.13.0-3",
        "sound",
        "CC-BY-SA-3.0",
        "animals, weather, water, tools, weapons, footsteps, short calls of people",
        kinds=(
            (r"/music/|/menu_music", "music"),
            (r"(worker|technician|archer|swordman|guard|horseman|warrior|lady)[^/]*_(ack|select)[^/]*$", "speech"),
        ),
        drop=r"/battlemage_hit[34]\.wav$",  # like 1-46272-A-12 of ESC-50 by its fingerprint
    ),
    Source(
        "wesnoth-1.16-data",
        "1:1.16.9-1",
        "sound",
        "GPL-2+",
        "animals, birds, fire, weapons, screams and groans, magic",
    ),
    Source(
        "openclonk-data",
        "8.1-3",
        "sound",
        "CC-BY-3.0, CC0-1.0, ISC",
        "tools, water, fire, weather, animals, doors, engines",
        kinds=((r"/Music\.ocg/", "music"),),
        drop=r"/0017331854\.ogg$",  # the same fire as in minetest-data, found by its fingerprint
    ),
    Source(
        "flare-game",
        "1.14-1",
        "sound",
        "CC-BY-SA-3.0+, GPL-3+",
        "rain, wind, river, fire, birds, footsteps, objects handled, creatures",
        kinds=((r"/music/(?!wind)", "music"), (r"/npcs/.*merchant", "speech")),
    ),
    Source(
        "ufoai-sound",
        "2.5-2",
        "sound",
        "GPL-2+, CC-BY-SA-3.0, CC-BY-3.0, public domain",
        "footsteps on many grounds, doors, machines, weather, weapons, screams",
        kinds=((r"/music/", "music"),),
    ),
    Source(
        "gcompris-qt-data",
        "3.1-2",
        "sound",
        "GPL-3+ and CC-BY-SA",
        "farm animals, instruments, music of the world, noises for children",
        kinds=((r"world_music|instruments\.rcc|chronos", "music"),),
    ),
    Source(
        "minetest-data",
        "5.6.1+dfsg+~1.9.0mt8+dfsg-2",
        "sound",
        "CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0, MIT",
        "footsteps on many grounds, digging, doors, water, fire, glass",
        # Its README names Freesound 4211, which ESC-50's 1-4211-A-12 (crackling fire) was cut from.
        drop=r"/fire_small\.ogg$|/devtest/",
    ),
    Source(
        "minetest-mod-homedecor",
        "20210327.1-2",
        "sound",
        "CC-BY-SA-4.0, LGPL-3, WTFPL",
        "things of a house: doorbell, toilet, shower",
        drop=r"/fire_small\.ogg$",  # as in minetest-data
    ),
    Source("minetest-mod-mesecons", "1:1.2.1-2", "sound", "LGPL-3, CC-BY-SA-3.0", "switches, pistons, note blocks"),
    Source(
        "bucklespring-data",
        "1.4.0-2",
        "sound",
        "GPL-2+",
        "keys of a keyboard pressed and released",
        group=r"/([^/]+)-\d\.wav$",
    ),
    Source("tuxpaint-data", "1:0.9.28-sdl2-1", "sound", "GPL-2+, public domain", "brushes, bubbles, clicks, tools"),
    Source(
        "gamine-data",
        "1.6-1",
        "sound",
        "GPL-3+, public domain",
        "bells, drops, animals",
        kinds=((r"/BachJSBrand", "music"),),
    ),
    Source("sound-icons", "0.1-8", "sound", "GPL-2+", "short signals: bells, cuckoo, glass, trumpet"),
    Source("sound-theme-freedesktop", "0.8-2", "sound", "GPL-2+, CC-BY-SA-3.0", "signals, camera shutter, telephone"),
    Source("oxygen-sounds", "4:5.27.5-2", "sound", "LGPL-3+", "signals of a desktop"),
    Source(
        "lomiri-sounds",
        "22.02-1",
        "music",
        "CC0-1.0, CC-BY-SA-3.0, CC-BY-3.0, CC-BY-4.0",
        "ring tones played by instruments and things",
    ),
    Source(
        "hydrogen-drumkits",
        "2017.09.19~dfsg-1",
        "instrument",
        "GPL-2+, CC0-1.0, CC-BY-3.0, CC-BY-SA-3.0",
        "hits of drums and percussion",
        group=r"/drumkits/([^/]+)/",
    ),
    Source(
        "sonic-pi-samples",
        "3.2.2~repack-8",
        "instrument",
        "CC0-1.0, CC-BY-SA-4.0",
        "drums, bells, guitar, tabla, ambience, vinyl, loops",
        kinds=((r"/(loop|ambi)_", "music"), (r"/(misc|vinyl|perc|glitch)_", "sound")),
        drop=r"/buffers/",
    ),
    Source(
        "lmms-common",
        "1.2.2+dfsg1-6",
        "instrument",
        "GPL-2+, LGPL-2.1+, CC-BY-SA-4.0",
        "drums, instruments, effects and loops",
        kinds=((r"/(beats|bassloops|stringsnpads)/", "music"), (r"/(effects|misc)/", "sound")),
        drop=r"/(waveforms|shapes)/|/samples/(harmonica|.*wave)",
    ),
    Source("asterisk-moh-opsound-wav", "2.03-1.1", "music", "CC-BY-SA-3.0", "music on hold, 8 kHz"),
    Source(
        "timgm6mb-soundfont", "1.3-5", "instrument", "GPL-2", "sampled instruments, played note by note with fluidsynth"
    ),
    Source(
        "widelands-data",
        "2:1.1-3",
        "sound",
        "GPL-2+, CC-BY-SA-3.0",
        "birds, wolves, frogs, crickets, saws, hammers, taverns; 381 MB, most of them pictures and music",
        kinds=((r"/music/", "music"),),
        default=False,
    ),
    Source(
        "warmux-data",
        "1:11.04.1+repack2-4",
        "sound",
        "GPL-2+",
        "weapons, splashes, cries, weather",
        kinds=((r"/music/", "music"),),
        default=False,
    ),
    Source(
        "hedgewars-data",
        "1.0.2-6",
        "speech",
        "GPL-2 and GFDL",
        "cries and sentences of cartoon voices in several languages",
        kinds=((r"/Music/", "music"), (r"/Sounds/[^/]+$", "sound")),
        group=r"/voices/([^/]+)/",
        default=False,
    ),
)
"""All packages that a recipe may name, in the order in which they are packed."""

SOUNDFONT = "timgm6mb-soundfont"
"""The one package that is not decoded but played (see `synthesis`)."""


@dataclass(frozen=True)
class Package:
    """A package on the disk: fetched, checked, unpacked.

    Attributes:
        source: its row of the catalogue.
        version: the version that is there.
        file: name of the .deb.
        sha256: of the .deb.
        size: bytes of the .deb.
        folder: where it is unpacked.
        licences: names of the licences in its copyright file, sorted; empty if they could not be told.
    """

    source: Source
    version: str
    file: str
    sha256: str
    size: int
    folder: Path
    licences: tuple[str, ...]


@dataclass(frozen=True)
class Recording:
    """One audio file of a package.

    Attributes:
        key: package and path inside it; unique, and the same on every machine.
        path: where it lies.
        package: name of the package.
        kind: what it is.
        group: what it must not be torn from (speaker, kit), or its own key.
    """

    key: str
    path: Path
    package: str
    kind: Kind
    group: str


def by_name(packages: Iterable[str]) -> tuple[Source, ...]:
    """Return the rows of the catalogue for names, in its order; for no names the default ones.

    Raises:
        UnknownNameError: no such package in the catalogue.
    """
    wanted = set(packages)
    known = {source.package for source in CATALOGUE}
    for name in sorted(wanted - known):
        raise unknown_name("audio package", name, known)
    return tuple(source for source in CATALOGUE if (source.package in wanted if wanted else source.default))


def cache_dir() -> Path:
    """Return where .deb files are kept: <AUDIOCL_HOME>/pretrain/packages."""
    return home() / "pretrain" / "packages"


# ------------------------------------------------------------------------------------------------------------- fetching


def fetch(sources: Iterable[Source], cache: Path, *, say: Say) -> list[Package]:
    """Return the packages of `sources`, each downloaded by `apt-get download` unless its .deb lies in `cache`.

    Nothing is installed and no right to do so is needed: apt's package lists must be there (`apt-get update`).

    Args:
        sources: rows of the catalogue.
        cache: folder of the .deb files and of what they unpack to.
        say: told, in one line, what is downloaded or unpacked.

    Raises:
        CorpusError: apt or dpkg is missing, the package or the network is, or the disk is full.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            return [_package(source, cache, say) for source in sources]
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, cache)) from cause


def _package(source: Source, cache: Path, say: Say) -> Package:
    deb = find_deb(source.package, cache) or download(source.package, cache, say)
    folder = unpack(deb, cache, say)
    version = deb.name.split("_")[1].replace("%3a", ":")
    licences = licence_names(_copyright(folder, source.package))
    return Package(source, version, deb.name, sha256_file(deb), deb.stat().st_size, folder, licences)


def find_deb(package: str, cache: Path) -> Path | None:
    """Return the .deb of a package in the cache, the last by name if there are several, or None."""
    return max(cache.glob(f"{package}_*.deb"), default=None)


def download(package: str, cache: Path, say: Say) -> Path:
    """Fetch the .deb of a package with `apt-get download`, which checks it against apt's signed lists; return its path.

    Raises:
        CorpusError: apt is missing, knows no such package, or cannot reach the archive.
    """
    say(f"downloading {package}")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as name:
        place = Path(name)
        run_tool(["apt-get", "-q", "download", package], cwd=place, failed=f"{package} cannot be downloaded")
        found = sorted(place.glob("*.deb"))
        if not found:
            raise CorpusError(f"apt-get download {package} left no .deb: put one into {cache} by hand.")
        return found[0].replace(cache / found[0].name)


def unpack(deb: Path, cache: Path, say: Say) -> Path:
    """Unpack the audio of a .deb below `cache`, also out of archives inside it; return the folder.

    The folder appears when all of it is there; a later call returns it as it is.

    Raises:
        CorpusError: dpkg-deb is missing, or the .deb is damaged.
    """
    folder = cache / "unpacked" / deb.name.removesuffix(".deb")
    if folder.is_dir():
        return folder
    say(f"unpacking {deb.name}")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        run_tool(["dpkg-deb", "-x", str(deb), str(part)], cwd=cache, failed=f"{deb} cannot be unpacked (delete it)")
        for path in sorted(part.rglob("*")):
            if path.suffix.lower() in _ZIP_SUFFIXES | _PACKED_SUFFIXES and path.is_file() and not path.is_symlink():
                open_archive(path)
        for path in part.rglob("*"):
            if path.is_file() and path.suffix.lower() not in _KEPT_SUFFIXES and path.name != "copyright":
                path.unlink()  # pictures and programs are most of a package
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def run_tool(command: list[str], *, cwd: Path, failed: str, env: dict[str, str] | None = None) -> str:
    """Run a system tool to its end and return what it printed.

    Raises:
        CorpusError: the tool is missing, or failed; the message begins with `failed` and gives the tool's own reason.
    """
    tool = command[0]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_APT_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as cause:
        raise CorpusError(
            f"{failed}: {Path(tool).name} is not there; run this on Debian or Ubuntu, or copy {cache_dir()} from one."
        ) from cause
    except subprocess.TimeoutExpired as cause:
        raise CorpusError(f"{failed}: {Path(tool).name} did not end within an hour; check the network.") from cause
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg", "Err"))]
        reason = (lines or [f"exit code {done.returncode}"])[0].removeprefix("E: ").rstrip(".")
        raise CorpusError(f"{failed}: {reason}; check the network and run `apt-get update` once.")
    return done.stdout


# ------------------------------------------------------------------------------------------------------------- archives


def open_archive(path: Path) -> int:
    """Write the recordings inside an archive into the folder `<path>.opened`; return how many there were.

    Zip files are listed. Others (Qt resources, and groups of OpenClonk, which are one gzip stream) keep audio as it is:
    whole Ogg streams and RIFF files are found by their headers and named by their place.
    """
    data = path.read_bytes()
    found = _zip_members(data) if path.suffix.lower() in _ZIP_SUFFIXES else _carved(_inflated(data))
    place = path.with_name(path.name + _OPENED)
    count = 0
    for name, content in found:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        count += 1
    return count


def _zip_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [info for info in archive.infolist() if Path(info.filename).suffix.lower() in AUDIO_SUFFIXES]
            if sum(info.file_size for info in members) > _UNPACKED_LIMIT:
                return
            for info in members:
                # A member's name is only a label here: what could lead out of the folder is taken off.
                parts = [part for part in Path(info.filename).parts if part not in ("..", "/", "\\")]
                yield "/".join(parts), archive.read(info)
    except zipfile.BadZipFile:
        return


def _inflated(data: bytes) -> bytes:
    """Return what a gzip stream holds, also one under OpenClonk's own two first bytes; other data as it is."""
    if data[:2] not in (b"\x1f\x8b", b"\x1e\x8c"):
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(b"\x1f\x8b" + data[2:])) as stream:
        return stream.read(_UNPACKED_LIMIT)


def _carved(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while True:
        ogg, riff = data.find(b"OggS\x00\x02", at), data.find(b"RIFF", at)
        start = min((place for place in (ogg, riff) if place >= 0), default=-1)
        if start < 0:
            return
        end = _ogg_end(data, start) if start == ogg else _riff_end(data, start)
        if end:
            yield f"{start:010d}{'.ogg' if start == ogg else '.wav'}", data[start:end]
        at = end or start + 4


def _ogg_end(data: bytes, at: int) -> int:
    """Return where the Ogg stream that begins at `at` ends (after the page with the end flag), 0 if it is cut."""
    while data[at : at + 5] == b"OggS\x00" and len(data) >= at + 27:
        segments = data[at + 26]
        last = data[at + 5] & 4
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if last:
            return at if at <= len(data) else 0
    return 0


def _riff_end(data: bytes, at: int) -> int:
    if data[at + 8 : at + 16] != b"WAVEfmt ":
        return 0
    end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return end if end <= len(data) else 0


# ------------------------------------------------------------------------------------------------------------- licences

_PHRASES = (
    (r"Creative Commons Attribution[- ]Share ?Alike (\d\.\d)", r"CC-BY-SA-\1"),
    (r"Creative Commons Attribution (\d\.\d)", r"CC-BY-\1"),
    (r"CC0|public domain dedication", "CC0-1.0"),
    (r"GNU Lesser General Public License", "LGPL"),
    (r"GNU Library General Public License", "LGPL"),
    (r"GNU General Public License", "GPL"),
    (r"GNU Free Documentation License", "GFDL"),
    (r"public domain", "public-domain"),
    (r"\bMIT License\b|Permission is hereby granted, free of charge", "MIT"),
)


def licence_names(text: str) -> tuple[str, ...]:
    """Return the short names of the licences in a Debian copyright file, sorted.

    A machine-readable file (DEP-5) names them in its `License:` fields; in older ones known phrases are looked for.
    """
    if re.search(r"^Format(-Specification)?:", text, flags=re.MULTILINE):
        fields = re.findall(r"^License:[ \t]*(\S[^\n]*)$", text, flags=re.MULTILINE)
        return tuple(sorted({field.strip() for field in fields}))
    flat = re.sub(r"\s+", " ", text)
    names = set()
    for pattern, name in _PHRASES:
        names |= {match.expand(name) for match in re.finditer(pattern, flat, flags=re.IGNORECASE)}
    return tuple(sorted(names))


def _copyright(folder: Path, package: str) -> str:
    path = folder / "usr/share/doc" / package / "copyright"
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a link into a package that is not unpacked here
        return ""


# ----------------------------------------------------------------------------------------------------------- recordings


def recordings(package: Package) -> list[Recording]:
    """Return the recordings of a package that are used, sorted by key."""
    found = []
    for path in package.folder.rglob("*"):
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.is_symlink() or not path.is_file():
            continue
        inside = "/" + path.relative_to(package.folder).as_posix()
        if package.source.takes(inside):
            name = package.source.package
            kind, group = package.source.kind_of(inside), package.source.group_of(inside)
            found.append(Recording(f"{name}:{inside}", path, name, kind, group))
    return sorted(found, key=lambda recording: recording.key)


def read(path: Path) -> NDArray[np.int16]:
    """Return a recording [N] as 16 kHz mono 16-bit samples, resampled as everywhere in audiocl.

    More is let through than by `audio.load`, which reads evaluation data: an MP3 file may hold fewer samples than it
    announces, and odd rates (22,254 Hz of old computers) are taken for the nearest multiple of 50 Hz.

    Raises:
        AudioError: it cannot be decoded, has samples that are not finite, or is shorter than 25 ms.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as cause:
        reason = str(getattr(cause, "error_string", "") or cause).strip().rstrip(".")
        raise AudioError(f"{path} cannot be decoded as audio ({reason}): leave it out.") from cause
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite numbers: leave it out.")
    mono = torch.from_numpy(np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32)))
    rate = rate if rate % 25 == 0 else max(50, 50 * round(rate / 50))
    wave = audio.resample(mono, rate, audio.SAMPLE_RATE) if len(mono) else mono
    if len(wave) < audio.FRAME_SAMPLES:
        raise AudioError(f"{path} is shorter than one 25 ms frame: leave it out.")
    return to_pcm(wave.numpy())


def to_pcm(wave: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round a wave [N] in [-1, 1] to 16-bit samples, clipped where it reaches beyond."""
    return np.rint(np.clip(wave, -1.0, 1.0) * 32767.0).astype(np.int16)


def digest(pcm: NDArray[np.int16]) -> str:
    """Return the SHA-256 of 16 kHz samples without the silence (exact zeros) around them.

    Equal digests mean the same recording, however it was stored without loss.
    """
    sounding = np.flatnonzero(pcm)
    inner = pcm[sounding[0] : sounding[-1] + 1] if len(sounding) else pcm[:0]
    return hashlib.sha256(inner.astype("<i2").tobytes()).hexdigest()


def readable(folder: Path) -> Iterator[tuple[Path, NDArray[np.int16]]]:
    """Yield (path, 16 kHz samples) of every audio file below a folder that can be decoded, in the order of paths."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            try:
                yield path, read(path)
            except AudioError:
                continue


def held_out_digests(folders: Iterable[Path]) -> frozenset[str]:
    """Return the digests of all audio files below `folders` (those of evaluation streams) that can be decoded."""
    return frozenset(digest(pcm) for folder in folders for _, pcm in readable(folder))
