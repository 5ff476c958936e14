"""Speech Commands v0.02: 105,829 spoken words of 1 s in 35 classes (Warden 2018).

Layout: `<word>/<speaker>_nohash_<n>.wav`, `testing_list.txt` and `validation_list.txt`. Clip id: the path without
extension, as in `backward/0165e0e8_nohash_0`. Label: the word. Group: the speaker. Fold: testing or validation if a
list names the clip, else training; no speaker is in two of them. `_background_noise_` holds no words and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiocl_bench.corpora.base import Clip, CorpusInfo, OfficialCorpus, audio_files, child, misplaced, stem
from audiocl_bench.errors import CorpusError

_LISTS = {"testing": "testing_list.txt", "validation": "validation_list.txt"}
_NOISE = "_background_noise_"


class SpeechCommands(OfficialCorpus):
    """Reader of Speech Commands v0.02 (v0.01 has the same layout)."""

    info = CorpusInfo(
        name="sc2",
        title="Speech Commands v0.02",
        folder="speech_commands_v0.02",
        licence="CC BY 4.0",
        citation=(
            "@article{warden2018speech, author={Pete Warden}, "
            "title={Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition}, "
            "journal={arXiv preprint arXiv:1804.03209}, year={2018}}"
        ),
        homepage="https://arxiv.org/abs/1804.03209",
        how_to_get="Get it (2.4 GB) with `audiocl data get sc2 --data DIR`.",
        needs_registration=False,
    )

    def lacks(self, root: Path) -> tuple[str, ...]:
        """Return which of the two official lists is not under `root`."""
        return tuple(name for name in _LISTS.values() if child(root, name) is None)

    def clips(self, root: Path) -> Iterator[Clip]:
        """Yield one clip per word recording."""
        folds: dict[str, str] = {}
        for fold, name in _LISTS.items():
            for clip_id in _read_list(child(root, name)):
                if folds.setdefault(clip_id, fold) != fold:
                    raise CorpusError(
                        f"{root}: testing_list.txt and validation_list.txt both name '{clip_id}': restore them."
                    )
        for clip_id, path in audio_files(root).items():
            word, *rest = clip_id.split("/")
            if word.lower() == _NOISE:
                continue
            if len(rest) != 1:
                raise misplaced(root, path, "<word>/<speaker>_nohash_<n>.wav")
            speaker = rest[0].partition("_nohash_")[0]
            yield Clip(clip_id, path, word, group=speaker, fold=folds.get(clip_id, "training"))


def _read_list(path: Path | None) -> Iterator[str]:
    """Yield the clip ids that an official list names."""
    assert path is not None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise CorpusError(f"{path} cannot be read as UTF-8 text: restore the official file.") from cause
    for line in text.splitlines():
        if line.strip():
            yield stem(line.strip())
