"""TIMIT as a speaker corpus: 630 speakers, 10 read sentences each (Garofolo et al. 1993, LDC93S1).

Layout: `{TRAIN,TEST}/DR<k>/<speaker>/<sentence>.WAV`, NIST SPHERE or RIFF, any letter case, also below a folder `data`
or `timit`. Clip id: speaker and sentence in upper case, as in `FCJF0/SA1`; a speaker has one dialect and one half, so
neither is part of the key. Label: the speaker. Group: the sentence. Fold: TRAIN or TEST.

A widespread copy has each clip twice, `SA1.WAV` (SPHERE) beside `SA1.WAV.wav` (the same samples as RIFF). That is one
clip, and the RIFF file is taken. Any other pair of files for one clip is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiocl_bench.corpora.base import (
    Clip,
    CorpusInfo,
    OfficialCorpus,
    audio_suffix,
    child,
    misplaced,
    stem,
    two_files,
    walk_files,
)
from audiocl_bench.errors import CorpusError

_HALVES = ("TRAIN", "TEST")
_NESTS = ("data", "timit")
_DEEPEST = 3


class TIMIT(OfficialCorpus):
    """Reader of TIMIT."""

    info = CorpusInfo(
        name="timit",
        title="TIMIT",
        folder="TIMIT",
        licence="LDC User Agreement (licensed; not redistributable)",
        citation=(
            "@misc{garofolo1993timit, author={John S. Garofolo and Lori F. Lamel and William M. Fisher and "
            "Jonathan G. Fiscus and David S. Pallett and Nancy L. Dahlgren and Victor Zue}, "
            "title={{TIMIT} Acoustic-Phonetic Continuous Speech Corpus}, howpublished={Linguistic Data Consortium, "
            "LDC93S1}, year={1993}, doi={10.35111/17gk-bn40}}"
        ),
        homepage="https://catalog.ldc.upenn.edu/LDC93S1",
        how_to_get=(
            "Get a licensed copy from https://catalog.ldc.upenn.edu/LDC93S1 and take it over with "
            "`audiocl data add timit PATH --data DIR`."
        ),
        needs_registration=True,
    )

    def lacks(self, root: Path) -> tuple[str, ...]:
        """Return TRAIN and TEST if neither is under `root`; one of them alone is a partial corpus."""
        return () if _halves(root) else ("TRAIN/", "TEST/")

    def clips(self, root: Path) -> Iterator[Clip]:
        """Yield one clip per speaker and sentence."""
        found: dict[str, Clip] = {}
        for fold, half in _halves(root).items():
            depth = len(half.relative_to(root).parts)
            for path in walk_files(root, half):
                if not audio_suffix(path):
                    continue
                parts = path.split("/")[depth:]
                if len(parts) != 3:
                    raise misplaced(root, path, "{TRAIN,TEST}/DR<k>/<speaker>/<sentence>.WAV")
                speaker, sentence = parts[1].upper(), _sentence(parts[2])
                clip = Clip(f"{speaker}/{sentence}", path, speaker, group=sentence, fold=fold)
                twin = found.get(clip.clip_id)
                found[clip.clip_id] = clip if twin is None else _riff_of(root, twin, clip)
        yield from found.values()


def _halves(root: Path, depth: int = 0) -> dict[str, Path]:
    """Return the folders TRAIN and TEST, as far as they exist, in `root` or nested below `data` or `timit`."""
    halves = {name: half for name in _HALVES if (half := child(root, name)) is not None and half.is_dir()}
    if halves or depth == _DEEPEST:
        return halves
    nests = (child(root, name) for name in _NESTS)
    return next((inner for nest in nests if nest and (inner := _halves(nest, depth + 1))), {})


def _sentence(name: str) -> str:
    """Return the sentence of a file name: `sa1.WAV.wav` -> `SA1`."""
    while audio_suffix(name):
        name = stem(name)
    return name.upper()


def _riff_of(root: Path, first: Clip, second: Clip) -> Clip:
    """Return the RIFF file of a SPHERE and RIFF pair in one folder; any other pair is an error."""
    kinds = {_magic(root / clip.path): clip for clip in (first, second)}
    beside = first.path.rpartition("/")[0] == second.path.rpartition("/")[0]
    if not beside or kinds.keys() != {b"NIST", b"RIFF"}:
        raise two_files(root, first.clip_id, first.path, second.path)
    return kinds[b"RIFF"]


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(4)
    except OSError as cause:
        raise CorpusError(f"{path} cannot be read ({cause.strerror or cause}): check its permissions.") from cause
