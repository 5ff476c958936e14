"""ESC-50: 2,000 environmental sounds of 5 s in 50 classes (Piczak 2015).

Layout: `audio/<fold>-<source>-<take>-<target>.wav` and `meta/esc50.csv`. Clip id: the file name without extension, as
in `1-100032-A-0`. Label: the class name (column category). Group: the Freesound recording (src_file). Fold: 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiocl_bench.corpora.base import (
    Clip,
    CorpusInfo,
    OfficialCorpus,
    audio_files,
    child,
    clips_of_table,
    read_table,
    stem,
)


class ESC50(OfficialCorpus):
    """Reader of ESC-50."""

    info = CorpusInfo(
        name="esc50",
        title="ESC-50",
        folder="ESC-50",
        licence="CC BY-NC 3.0 (the ESC-10 subset: CC BY 3.0)",
        citation=(
            "@inproceedings{piczak2015esc, author={Karol J. Piczak}, "
            "title={{ESC}: Dataset for Environmental Sound Classification}, "
            "booktitle={Proceedings of the 23rd ACM International Conference on Multimedia}, pages={1015--1018}, "
            "year={2015}, doi={10.1145/2733373.2806390}}"
        ),
        homepage="https://github.com/karolpiczak/ESC-50",
        how_to_get="Get it (0.6 GB) with `audiocl data get esc50 --data DIR`.",
        needs_registration=False,
        aliases=("ESC-50-master",),
    )

    def lacks(self, root: Path) -> tuple[str, ...]:
        """Return which of `audio/` and `meta/esc50.csv` is not under `root`."""
        audio, table = _parts(root)
        return tuple(name for name, part in (("audio/", audio), ("meta/esc50.csv", table)) if part is None)

    def clips(self, root: Path) -> Iterator[Clip]:
        """Yield the clips of the metadata file whose audio exists."""
        audio, table = _parts(root)
        assert audio is not None
        assert table is not None
        rows = read_table(table, ("filename", "fold", "category", "src_file"), fix="restore the official file")
        listed = (
            Clip(stem(row["filename"]), "", row["category"], group=row["src_file"], fold=row["fold"]) for _, row in rows
        )
        yield from clips_of_table(root, table, listed, audio_files(root, audio))


def _parts(root: Path) -> tuple[Path | None, Path | None]:
    meta = child(root, "meta")
    return child(root, "audio"), child(meta, "esc50.csv") if meta else None
