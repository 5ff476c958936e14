"""UrbanSound8K: 8,732 slices of up to 4 s of urban recordings in 10 classes (Salamon et al. 2014).

Layout: `audio/fold<k>/<fsID>-<classID>-<occurrence>-<slice>.wav` and `metadata/UrbanSound8K.csv`. Clip id: the path
below `audio/` without extension, as in `fold5/100032-3-0-0`. Label: the class name (column class). Group: the Freesound
recording (fsID); slices of one recording share it, and five recordings have slices in two folds. Fold: fold, 1 to 10.
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


class UrbanSound8K(OfficialCorpus):
    """Reader of UrbanSound8K."""

    info = CorpusInfo(
        name="us8k",
        title="UrbanSound8K",
        folder="UrbanSound8K",
        licence="CC BY-NC 3.0",
        citation=(
            "@inproceedings{salamon2014urbansound, author={Justin Salamon and Christopher Jacoby and "
            "Juan Pablo Bello}, title={A Dataset and Taxonomy for Urban Sound Research}, "
            "booktitle={Proceedings of the 22nd ACM International Conference on Multimedia}, pages={1041--1044}, "
            "year={2014}, doi={10.1145/2647868.2655045}}"
        ),
        homepage="https://zenodo.org/records/1203745",
        how_to_get="Get it (6 GB, no registration) with `audiocl data get us8k --data DIR`.",
        needs_registration=False,
    )

    def lacks(self, root: Path) -> tuple[str, ...]:
        """Return which of `audio/` and `metadata/UrbanSound8K.csv` is not under `root`."""
        audio, table = _parts(root)
        return tuple(name for name, part in (("audio/", audio), ("metadata/UrbanSound8K.csv", table)) if part is None)

    def clips(self, root: Path) -> Iterator[Clip]:
        """Yield the clips of the metadata file whose audio exists."""
        audio, table = _parts(root)
        assert audio is not None
        assert table is not None
        rows = read_table(table, ("slice_file_name", "fsID", "fold", "class"), fix="restore the official file")
        listed = (
            Clip(f"fold{row['fold']}/{stem(row['slice_file_name'])}", "", row["class"], row["fsID"], row["fold"])
            for _, row in rows
        )
        yield from clips_of_table(root, table, listed, audio_files(root, audio))


def _parts(root: Path) -> tuple[Path | None, Path | None]:
    meta = child(root, "metadata")
    return child(root, "audio"), child(meta, "UrbanSound8K.csv") if meta else None
