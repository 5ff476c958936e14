"""Corpora: where each one's clips are, their labels, groups and folds, and how to get the audio.

    corpus = corpora.get("esc50")
    root = corpus.find(Path("~/data"))      # <data>/ESC-50, <data> itself, or <cache>/data/ESC-50
    index = corpus.index(root)              # clip_id, path, label, group, fold: one row per clip that is there
    corpora.index_hash(index)               # of clip ids and labels: a FLAC copy has the same hash as the WAV original
    corpora.differences(index, expected)    # what a copy lacks, has too much or labels otherwise

`mini-esc50` and its like are synthetic miniatures, made on first use (`mini`).

A built-in corpus is read in its official layout; a copy re-encoded as FLAC, OGG or Opus with the same stems counts as
the same corpus. Your own recordings need no code: `corpora.own.FolderCorpus` and `corpora.own.CsvCorpus`.
"""

from __future__ import annotations

from importlib import import_module

from audiocl_bench.corpora.base import Corpus, CorpusInfo, differences, index_hash
from audiocl_bench.errors import unknown_name
from audiocl_bench.mini.catalogue import PREFIX

__all__ = ["Corpus", "CorpusInfo", "differences", "get", "index_hash", "names"]

# name -> (module, class); a module is imported when its corpus is first asked for.
_BUILT_IN = {
    "esc50": ("esc50", "ESC50"),
    "us8k": ("us8k", "UrbanSound8K"),
    "sc2": ("sc2", "SpeechCommands"),
    "timit": ("timit", "TIMIT"),
    "vocalset": ("vocalset", "VocalSet"),
}


def names() -> tuple[str, ...]:
    """Return the names of the built-in corpora; each but the miniatures, which are called `mini-` and such a name."""
    return tuple(_BUILT_IN)


def get(name: str) -> Corpus:
    """Return the built-in corpus called `name`.

    Raises:
        UnknownNameError: no built-in corpus has this name; the message lists the nearest ones.
    """
    real = name.removeprefix(PREFIX)
    if real not in _BUILT_IN:
        raise unknown_name("corpus", name, _BUILT_IN)
    if name != real:
        from audiocl_bench.mini.corpus import MiniCorpus  # here: who has the real corpora needs no synthesiser

        return MiniCorpus(name, get(real).info.title)
    module, cls = _BUILT_IN[name]
    corpus: Corpus = getattr(import_module(f"{__name__}.{module}"), cls)()
    return corpus
