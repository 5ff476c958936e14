"""VocalSet: 20 professional singers, 17 vocal techniques (Wilkins et al. 2018).

Layout: `FULL/<singer>/<context>/<technique>/*.wav`. Clip id: the path below `FULL/` without extension, with every
irregular name as shipped (blanks, brackets, abbreviations), as in `female1/arpeggios/belt/f1_arpeggios_belt_c_a`.
Label: the technique, which is the parent folder; file names are too irregular to tell it. One folder is misspelt
`vibrado` and means vibrato; its clip ids keep the misspelling. Group: the singer. The layout itself has no folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiocl_bench.corpora.base import Clip, CorpusInfo, OfficialCorpus, audio_files, child, misplaced

_MISSPELT = {"vibrado": "vibrato"}


class VocalSet(OfficialCorpus):
    """Reader of VocalSet."""

    info = CorpusInfo(
        name="vocalset",
        title="VocalSet",
        folder="VocalSet",
        licence="CC BY 4.0",
        citation=(
            "@inproceedings{wilkins2018vocalset, author={Julia Wilkins and Prem Seetharaman and Alison Wahl and "
            "Bryan Pardo}, title={{VocalSet}: A Singing Voice Dataset}, booktitle={Proceedings of the 19th "
            "International Society for Music Information Retrieval Conference}, pages={468--474}, year={2018}, "
            "doi={10.5281/zenodo.1193957}}"
        ),
        homepage="https://zenodo.org/records/1193957",
        how_to_get="Get it (2 GB) with `audiocl data get vocalset --data DIR`.",
        needs_registration=False,
    )

    def lacks(self, root: Path) -> tuple[str, ...]:
        """Return `FULL/` if it is not under `root`."""
        return () if child(root, "FULL") is not None else ("FULL/",)

    def clips(self, root: Path) -> Iterator[Clip]:
        """Yield one clip per recording."""
        full = child(root, "FULL")
        assert full is not None
        for clip_id, path in audio_files(root, full).items():
            parts = clip_id.split("/")
            if len(parts) != 4:
                raise misplaced(root, path, "FULL/<singer>/<context>/<technique>/*.wav")
            singer, _, technique, _ = parts
            yield Clip(clip_id, path, _MISSPELT.get(technique, technique), group=singer)
